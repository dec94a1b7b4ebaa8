/** Asking again and again, and the tick of the clock. */
import { useEffect, useRef, useState } from 'preact/hooks'
import * as api from './api.ts'

/** After a failure, which often is a change of network that is over at once. */
const RETRY_S = 3

export interface Polled<T> {
  /** The newest answer; it stays when a later request fails. */
  data: T | undefined
  /** Why the newest request failed. */
  error: string | undefined
  /** When the newest answer came, in unix seconds. */
  at: number | undefined
  refresh(): void
}

/**
 * Asks now, then every so many seconds while the page is visible. When `key` changes, the answer is of something else
 * and is dropped; when `more` changes, it is asked for again and stands until then.
 */
export function usePolled<T>(
  ask: (signal: AbortSignal) => Promise<T>,
  every_s: number,
  key = '',
  more = 0,
): Polled<T> {
  const [answer, setAnswer] = useState<Omit<Polled<T>, 'refresh'>>({
    data: undefined,
    error: undefined,
    at: undefined,
  })
  const asking = useRef(ask)
  asking.current = ask
  const again = useRef(() => {})

  useEffect(() => {
    let left = new AbortController()
    let timer: ReturnType<typeof setTimeout> | undefined
    const run = async () => {
      clearTimeout(timer)
      left.abort()
      left = new AbortController()
      const { signal } = left
      let wait_s = every_s
      try {
        const data = await asking.current(signal)
        if (!signal.aborted) setAnswer({ data, error: undefined, at: api.now() })
      } catch (error) {
        if (signal.aborted) return
        const reason = error instanceof api.ApiError ? error.message : String(error)
        setAnswer((before) => ({ ...before, error: reason }))
        wait_s = Math.min(RETRY_S, every_s)
      }
      if (!signal.aborted) timer = setTimeout(tick, wait_s * 1000)
    }
    // A hidden page asks nothing; once visible, it asks at once.
    const tick = () => {
      if (!document.hidden) void run()
    }
    const visible = () => {
      if (!document.hidden) void run()
    }
    setAnswer({ data: undefined, error: undefined, at: undefined })
    again.current = () => void run()
    void run()
    document.addEventListener('visibilitychange', visible)
    return () => {
      left.abort()
      clearTimeout(timer)
      document.removeEventListener('visibilitychange', visible)
    }
  }, [every_s, key])

  const [first] = useState(more)
  useEffect(() => {
    if (more !== first) again.current()
  }, [more])

  return { ...answer, refresh: () => again.current() }
}

/** Unix seconds by the server's clock, renewed every so often. */
export function useNow(every_s = 1): number {
  const [now, setNow] = useState(api.now)
  useEffect(() => {
    const timer = setInterval(() => setNow(api.now()), every_s * 1000)
    return () => clearInterval(timer)
  }, [every_s])
  return now
}
