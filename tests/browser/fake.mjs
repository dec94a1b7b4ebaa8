// A stand-in for the api, for what the real one can't be made to show at will: hostile names, gaps, a lost
// connection, faults. It serves the built page under the same policy as the api does.
//
// `node tests/browser/fake.mjs 8421` serves it for development.
import { readFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { extname, join, normalize } from 'node:path'
import { fileURLToPath } from 'node:url'
import { fleet, iso, now, QUERIES, reading } from './hosts.mjs'

const STATIC = fileURLToPath(new URL('../../services/api/static', import.meta.url))
const TYPES = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript',
  '.css': 'text/css',
  '.svg': 'image/svg+xml',
}
export const POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

export class Fake {
  constructor(world = fleet()) {
    this.world = world
    this.streams = new Set()
    this.requests = []
    this.port = 0
  }

  /** Serves on the port it had before, so that a page that lost it finds it again. */
  async start(port = this.port) {
    this.server = createServer((request, response) => void this.answer(request, response))
    await new Promise((resolve, reject) =>
      this.server.once('error', reject).listen(port, '127.0.0.1', resolve),
    )
    this.port = this.server.address().port
    this.ticker = setInterval(() => this.tick(), 1_000)
    return `http://127.0.0.1:${this.port}/`
  }

  async stop() {
    clearInterval(this.ticker)
    this.streams.clear()
    this.server.closeAllConnections()
    await new Promise((resolve) => this.server.close(resolve))
  }

  async answer(request, response) {
    const url = new URL(request.url, 'http://fake')
    this.requests.push({ path: url.pathname, query: url.searchParams, headers: request.headers })
    try {
      if (this.world.broken.has(url.pathname))
        return send(response, 500, {
          title: 'Internal Server Error',
          status: 500,
          detail: 'the database is on fire',
        })
      if (url.pathname === '/v1/stream') return this.stream(url.searchParams, request, response)
      if (url.pathname.startsWith('/v1/') || url.pathname.startsWith('/api/')) {
        const body = this.resource(url.pathname, url.searchParams)
        return send(response, body === undefined ? 404 : 200, body ?? { title: 'Not Found', status: 404 })
      }
      return await file(url.pathname, response)
    } catch (error) {
      return send(response, 500, { title: String(error), status: 500 })
    }
  }

  resource(path, query) {
    const { agents, pipeline, alerts, transitions, groups, inbox, deliveries } = this.world
    const instance = query.get('instance')
    const list = (items) => {
      const start = Number(query.get('cursor') ?? 0)
      const end = start + Math.min(this.world.cap, Number(query.get('limit') ?? 100))
      return { items: items.slice(start, end), next: end < items.length ? String(end) : null }
    }
    const success = (data) => ({ status: 'success', data })
    switch (path) {
      case '/v1/agents':
        return list(
          agents.map((one) => (one.state === 'up' ? { ...one, last_sample_at: iso(now() - 1) } : one)),
        )
      case '/v1/pipeline':
        return pipeline
      case '/v1/transitions':
        return list(transitions.filter(({ labels }) => instance === null || labels.instance === instance))
      case '/v1/inbox':
        return list(inbox)
      case '/v1/deliveries':
        return list(deliveries)
      case '/api/v1/alerts':
        return success({ alerts })
      case '/api/v1/rules':
        return success({ groups })
      case '/api/v1/query':
        return success({ resultType: 'vector', result: this.vector(query.get('query'), now()) })
      case '/api/v1/query_range':
        return success({ resultType: 'matrix', result: this.matrix(query) })
      default:
        return undefined
    }
  }

  /** The hosts that the expression selects, each with its series' values at an instant. */
  vector(expression, t) {
    const values = QUERIES.find(([pattern]) => pattern.test(expression))?.[1]
    if (values === undefined) throw new Error(`no such expression here: ${expression}`)
    const selected = /instance="((?:[^"\\]|\\.)*)"/.exec(expression)?.[1].replace(/\\(.)/g, '$1')
    return this.world.agents
      .map((one, seed) => ({ ...one, seed }))
      .filter(({ instance, state }) => (selected === undefined ? state === 'up' : instance === selected))
      .flatMap(({ instance, job, seed }) =>
        values(t, seed).map(([labels, value]) => ({
          metric: { instance, job, ...labels },
          value: [t, String(value)],
        })),
      )
  }

  matrix(query) {
    const [start, end, step] = ['start', 'end', 'step'].map((name) => Number(query.get(name)))
    const series = new Map()
    for (let t = start; t <= end; t += step) {
      if (t > this.world.gap[0] && t < this.world.gap[1]) continue
      for (const { metric, value } of this.vector(query.get('query'), t)) {
        const key = JSON.stringify(metric)
        if (!series.has(key)) series.set(key, { metric, values: [] })
        series.get(key).values.push(value)
      }
    }
    return [...series.values()]
  }

  stream(query, request, response) {
    response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' })
    response.write(': here\n\n')
    const client = { response, instance: query.get('instance'), metrics: query.getAll('metric') }
    this.streams.add(client)
    request.on('close', () => this.streams.delete(client))
  }

  emit(event, data, id) {
    const text = `${id === undefined ? '' : `id: ${id}\n`}event: ${event}\ndata: ${JSON.stringify(data)}\n\n`
    for (const { response } of this.streams) response.write(text)
  }

  /** Ends every stream as for a client that is too slow. */
  lag() {
    for (const { response } of this.streams) response.end('event: lagged\ndata: {}\n\n')
    this.streams.clear()
  }

  tick() {
    const t = now()
    for (const { response, instance: followed, metrics } of this.streams) {
      for (const [seed, { job, instance, state }] of this.world.agents.entries()) {
        if (state !== 'up' || (followed !== null && followed !== instance)) continue
        const samples = { job, instance, at: iso(t) }
        if (metrics.length > 0) samples.values = reading(t, seed)
        response.write(`event: samples\ndata: ${JSON.stringify(samples)}\n\n`)
      }
    }
  }
}

function send(response, status, body) {
  response.writeHead(status, {
    'content-type': status < 400 ? 'application/json' : 'application/problem+json',
  })
  response.end(JSON.stringify(body))
}

async function file(path, response) {
  const name = join(STATIC, normalize(path === '/' ? '/index.html' : path))
  const body = await readFile(name).catch((error) => {
    if (error.code === 'ENOENT') return undefined
    throw error
  })
  if (body === undefined) return send(response, 404, { title: 'Not Found', status: 404 })
  response.writeHead(200, {
    'content-type': TYPES[extname(name)] ?? 'application/octet-stream',
    'content-security-policy': POLICY,
  })
  return response.end(body)
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  console.log(await new Fake().start(Number(process.argv[2] ?? 0)))
}
