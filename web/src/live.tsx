/** The page's one stream, for every component below. */
import { createContext } from 'preact'
import { useContext, useEffect, useRef, useState } from 'preact/hooks'
import { Stream, type Listener, type StreamState } from './stream.ts'

const Live = createContext<Stream>(new Stream())

export function useStream(): Stream {
  return useContext(Live)
}

/** Hears the stream while the component is shown. */
export function useListener(listener: Listener): void {
  const stream = useStream()
  const newest = useRef(listener)
  newest.current = listener
  useEffect(
    () =>
      stream.listen({
        samples: (samples) => newest.current.samples?.(samples),
        transition: (transition) => newest.current.transition?.(transition),
        state: (state) => newest.current.state?.(state),
        resumed: () => newest.current.resumed?.(),
      }),
    [stream],
  )
}

export function useStreamState(): StreamState {
  const stream = useStream()
  const [state, setState] = useState(stream.state)
  useListener({ state: setState })
  useEffect(() => setState(stream.state), [stream])
  return state
}
