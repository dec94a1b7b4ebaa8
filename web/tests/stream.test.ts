import assert from 'node:assert/strict'
import { afterEach, beforeEach, mock, test } from 'node:test'
import { retryAfter, Stream } from '../src/stream.ts'

/** What a browser's EventSource does, at the test's command. */
class Source extends EventTarget {
  static readonly CLOSED = 2
  static all: Source[] = []
  readyState = 0

  constructor(readonly address: string) {
    super()
    Source.all.push(this)
  }

  close() {
    this.readyState = Source.CLOSED
  }

  say(type: string, data: unknown = {}) {
    this.dispatchEvent(Object.assign(new Event(type), { data: JSON.stringify(data) }))
  }

  refuse() {
    this.readyState = Source.CLOSED
    this.say('error')
  }
}

beforeEach(() => {
  Source.all = []
  Object.assign(globalThis, { EventSource: Source })
  mock.timers.enable({ apis: ['setTimeout'] })
})

afterEach(() => mock.timers.reset())

function followed() {
  const stream = new Stream()
  const heard: string[] = []
  stream.listen({
    state: (state) => heard.push(state),
    samples: ({ instance }) => heard.push(`samples ${instance}`),
    transition: ({ rule }) => heard.push(`transition ${rule}`),
    resumed: () => heard.push('resumed'),
  })
  stream.follow({ instance: 'a b', metrics: ['m', 'n'] })
  return { stream, heard, source: Source.all[0]! }
}

test('it asks for the instance and the metrics that are followed', () => {
  assert.equal(followed().source.address, '/v1/stream?instance=a+b&metric=m&metric=n')
})

test('events reach the listeners', () => {
  const { heard, source } = followed()
  source.say('open')
  source.say('samples', { instance: 'a' })
  source.say('transition', { rule: 'r' })
  assert.deepEqual(heard, ['open', 'samples a', 'transition r'])
})

test('a connection that the browser restores is lost, then resumed', () => {
  const { heard, source } = followed()
  source.say('open')
  source.say('error')
  source.say('open')
  assert.deepEqual(heard, ['open', 'lost', 'open', 'resumed'])
  assert.equal(Source.all.length, 1)
})

test('a refused stream is opened again, later each time', () => {
  mock.method(Math, 'random', () => 0)
  const { heard, source } = followed()
  source.refuse()
  mock.timers.tick(999)
  assert.equal(Source.all.length, 1)
  mock.timers.tick(1)
  assert.equal(Source.all.length, 2)
  Source.all[1]!.refuse()
  mock.timers.tick(1999)
  assert.equal(Source.all.length, 2)
  mock.timers.tick(1)
  Source.all[2]!.say('open')
  assert.deepEqual(heard, ['lost', 'open', 'resumed'])
  mock.restoreAll()
})

test('a client that lagged asks for what it missed once it is back', () => {
  const { heard, source } = followed()
  source.say('open')
  source.say('lagged')
  source.say('error')
  source.say('open')
  assert.equal(heard.at(-1), 'resumed')
})

test('following something else closes what was followed before', () => {
  const { stream, source } = followed()
  stream.follow({ instance: 'a b', metrics: ['m', 'n'] })
  assert.equal(Source.all.length, 1)
  stream.follow({})
  assert.equal(source.readyState, Source.CLOSED)
  assert.equal(Source.all[1]!.address, '/v1/stream')
})

test('waits double up to half a minute, less a share of chance', () => {
  assert.deepEqual(
    [0, 1, 2, 10].map((failures) => retryAfter(failures, 0)),
    [1000, 2000, 4000, 30_000],
  )
  assert.equal(retryAfter(0, 1), 500)
})
