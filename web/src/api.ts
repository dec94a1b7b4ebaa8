/** What the api answers, and how it is asked. Times are RFC 3339 in /v1, unix seconds in /api/v1. */
import type { Labels } from './series.ts'

export interface Agent {
  job: string
  instance: string
  labels: Labels
  state: 'up' | 'silent' | 'gone'
  last_sample_at: string | null
  received_at: string | null
  lag_s: number | null
  epoch: string
  first_seq: number
  last_seq: number
  messages: number
  missing: number
  samples: number
  version: string
  /** Seconds between messages; null where the agent has not said it. */
  interval_s: number | null
}

export type AlertState = 'inactive' | 'pending' | 'firing'

export interface Transition {
  id: string | number
  rule: string
  severity: string
  labels: Labels
  annotations: Labels
  from: AlertState
  to: AlertState
  at: string
  value: number | null
}

export interface Alert {
  labels: Labels
  annotations: Labels
  state: AlertState
  activeAt: string
  value: string
}

export interface Rule {
  type: string
  name: string
  /** Empty for a rule that fires when samples stay away. */
  query: string
  duration: number
  /** After how many seconds without samples it fires. */
  noData?: number | null
  labels: Labels
  annotations: Labels
  state?: AlertState
  health: string
  alerts?: Alert[]
}

export interface RuleGroup {
  name: string
  file: string
  interval: number
  rules: Rule[]
}

export interface InboxMessage {
  id: string | number
  at: string
  receiver: string
  status: 'firing' | 'resolved'
  title: string
  body: string
  labels: Labels
  alerts: { status?: string; labels: Labels; annotations?: Labels; startsAt?: string; endsAt?: string }[]
  read: boolean
}

export interface Delivery {
  id: string | number
  group_key: string
  receiver: string
  channel: string
  status: 'firing' | 'resolved'
  state: 'pending' | 'sent' | 'failed'
  attempts: number
  due_at: string | null
  sent_at: string | null
  reason: string | null
  error: string | null
}

/** Numbers of samples since the agents' epochs began. */
export interface Pipeline {
  generated: number
  stored: number
  dropped: number
  in_flight: number
}

export interface Page<T> {
  items: T[]
  next: string | null
}

export interface VectorItem {
  metric: Labels
  value: [number, string]
}

export interface MatrixItem {
  metric: Labels
  values: [number, string][]
}

/** The request got no good answer; status 0 means that none came at all. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
  ) {
    super(message)
  }
}

const TIMEOUT_MS = 15_000

/** The server's clock less this one's, in seconds: ages are told by the server's. */
let clockOffset_s = 0

/** Unix seconds by the server's clock. */
export function now(): number {
  return Date.now() / 1000 + clockOffset_s
}

function readClock(response: Response): void {
  const date = Date.parse(response.headers.get('date') ?? '') / 1000
  // The header has whole seconds: below 2 s the difference may be rounding and travel time.
  const offset = date - Date.now() / 1000
  if (!Number.isNaN(date)) clockOffset_s = Math.abs(offset) < 2 ? 0 : offset
}

type Parameters = Record<string, string | number | undefined>

async function get<T>(path: string, parameters: Parameters, signal: AbortSignal): Promise<T> {
  const query = new URLSearchParams()
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== undefined) query.set(name, String(value))
  }
  const address = query.size > 0 ? `${path}?${query}` : path
  let response: Response
  let body: unknown
  try {
    response = await fetch(address, {
      headers: { accept: 'application/json' },
      signal: AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT_MS)]),
    })
    body = await response.json().catch((error: unknown) => {
      if (error instanceof SyntaxError) return undefined
      throw error
    })
  } catch (error) {
    if (signal.aborted) throw error
    const late = error instanceof DOMException && error.name === 'TimeoutError'
    throw new ApiError(late ? `no answer within ${TIMEOUT_MS / 1000} s` : 'the server can’t be reached', 0)
  }
  readClock(response)
  if (!response.ok) throw new ApiError(reason(body) ?? `HTTP status ${response.status}`, response.status)
  if (body === undefined) throw new ApiError('the answer is not JSON', response.status)
  return body as T
}

/** The reason in a problem document (RFC 9457) or in Prometheus' envelope. */
function reason(body: unknown): string | undefined {
  if (typeof body !== 'object' || body === null) return undefined
  const { detail, error, title } = body as Record<string, unknown>
  return [detail, error, title].find((text) => typeof text === 'string')
}

async function prometheus<T>(path: string, parameters: Parameters, signal: AbortSignal): Promise<T> {
  return (await get<{ data: T }>(`/api/v1/${path}`, parameters, signal)).data
}

export async function query(expression: string, signal: AbortSignal): Promise<VectorItem[]> {
  const data = await prometheus<{ result: VectorItem[] }>('query', { query: expression }, signal)
  return data.result
}

export async function queryRange(
  expression: string,
  { start, end, step }: { start: number; end: number; step: number },
  signal: AbortSignal,
): Promise<MatrixItem[]> {
  const parameters = { query: expression, start, end, step }
  return (await prometheus<{ result: MatrixItem[] }>('query_range', parameters, signal)).result
}

export async function alerts(signal: AbortSignal): Promise<Alert[]> {
  return (await prometheus<{ alerts: Alert[] }>('alerts', {}, signal)).alerts
}

export async function ruleGroups(signal: AbortSignal): Promise<RuleGroup[]> {
  return (await prometheus<{ groups: RuleGroup[] }>('rules', {}, signal)).groups
}

/** Every agent: a list that is cut would hide hosts. */
export async function agents(signal: AbortSignal): Promise<Agent[]> {
  const all: Agent[] = []
  let cursor: string | undefined
  do {
    const page: Page<Agent> = await get('/v1/agents', { limit: 500, cursor }, signal)
    all.push(...page.items)
    cursor = page.next ?? undefined
  } while (cursor !== undefined)
  return all
}

export async function pipeline(signal: AbortSignal): Promise<Pipeline> {
  return get('/v1/pipeline', {}, signal)
}

export async function transitions(
  filter: { instance?: string; limit: number; cursor?: string },
  signal: AbortSignal,
): Promise<Page<Transition>> {
  return get('/v1/transitions', filter, signal)
}

export async function inbox(
  filter: { limit: number; cursor?: string },
  signal: AbortSignal,
): Promise<Page<InboxMessage>> {
  return get('/v1/inbox', filter, signal)
}

export async function deliveries(
  filter: { limit: number; cursor?: string },
  signal: AbortSignal,
): Promise<Page<Delivery>> {
  return get('/v1/deliveries', filter, signal)
}
