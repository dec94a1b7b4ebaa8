/**
 * The live stream: one EventSource at a time, of what the current view follows.
 *
 * A browser allows six connections to a server, over all tabs; so there is one stream a tab and no more.
 * The browser itself reconnects after a lost connection and sends Last-Event-ID. It gives up when the server
 * answers anything but a stream (503 while it starts): then a new one is opened, later and later.
 */
import type { Transition } from './api.ts'

export interface Samples {
  job: string
  instance: string
  at: string
  values?: Record<string, number | null>
}

export interface Following {
  instance?: string
  metrics?: readonly string[]
}

export type StreamState = 'connecting' | 'open' | 'lost'

export interface Listener {
  samples?(samples: Samples): void
  transition?(transition: Transition): void
  state?(state: StreamState): void
  /** The stream is back after it was lost or cut: what happened meanwhile must be asked for. */
  resumed?(): void
}

const FIRST_RETRY_MS = 1_000
const LAST_RETRY_MS = 30_000

export class Stream {
  state: StreamState = 'connecting'
  private source: EventSource | undefined
  private retry: ReturnType<typeof setTimeout> | undefined
  private failures = 0
  private interrupted = false
  private address = ''
  private readonly listeners = new Set<Listener>()

  /** Opens the stream of this, in place of what was followed before. */
  follow({ instance, metrics = [] }: Following): void {
    const query = new URLSearchParams()
    if (instance !== undefined) query.set('instance', instance)
    for (const metric of metrics) query.append('metric', metric)
    const address = query.size > 0 ? `/v1/stream?${query}` : '/v1/stream'
    if (address === this.address) return
    this.address = address
    this.failures = 0
    this.interrupted = false
    this.connect()
  }

  /** Calls the listener until the returned function is called. */
  listen(listener: Listener): () => void {
    this.listeners.add(listener)
    return () => this.listeners.delete(listener)
  }

  /** Tries at once instead of waiting for the next attempt. */
  reconnect(): void {
    this.failures = 0
    this.connect()
  }

  private connect(): void {
    clearTimeout(this.retry)
    this.source?.close()
    const source = new EventSource(this.address)
    this.source = source
    this.become(this.interrupted ? 'lost' : 'connecting')
    source.addEventListener('open', () => this.opened())
    source.addEventListener('error', () => this.failed(source))
    source.addEventListener('samples', (event: MessageEvent<string>) => {
      const samples = JSON.parse(event.data) as Samples
      for (const listener of this.listeners) listener.samples?.(samples)
    })
    source.addEventListener('transition', (event: MessageEvent<string>) => {
      const transition = JSON.parse(event.data) as Transition
      for (const listener of this.listeners) listener.transition?.(transition)
    })
    // The server cut this client off, for it was too slow. It closes; the browser comes back by itself.
    source.addEventListener('lagged', () => (this.interrupted = true))
  }

  private opened(): void {
    this.failures = 0
    this.become('open')
    if (!this.interrupted) return
    this.interrupted = false
    for (const listener of this.listeners) listener.resumed?.()
  }

  private failed(source: EventSource): void {
    this.interrupted = true
    this.become('lost')
    if (source.readyState !== EventSource.CLOSED) return
    const wait_ms = retryAfter(this.failures, Math.random())
    this.failures += 1
    this.retry = setTimeout(() => this.connect(), wait_ms)
  }

  private become(state: StreamState): void {
    if (state === this.state) return
    this.state = state
    for (const listener of this.listeners) listener.state?.(state)
  }
}

/**
 * Doubles from a second to half a minute; `chance` in 0..1 takes up to half of it away, so that pages don't return
 * together.
 */
export function retryAfter(failures: number, chance: number): number {
  const longest = Math.min(LAST_RETRY_MS, FIRST_RETRY_MS * 2 ** failures)
  return longest * (1 - chance / 2)
}
