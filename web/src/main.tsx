/** The page: header, the view that the address names, and the state of the live stream. */
import { render } from 'preact'
import { useEffect, useState } from 'preact/hooks'
import 'uplot/dist/uPlot.min.css'
import * as api from './api.ts'
import { useListener, useStream, useStreamState } from './live.tsx'
import { LIVE_METRICS } from './panels.ts'
import { Empty } from './parts.tsx'
import { usePolled } from './polling.ts'
import { parseRoute, type Route } from './route.ts'
import './style.css'
import { toggleTheme, useTheme } from './theme.ts'
import { Alerts } from './views/alerts.tsx'
import { Inbox } from './views/inbox.tsx'
import { Instance } from './views/instance.tsx'
import { Instances } from './views/instances.tsx'

const ALERTS_EVERY_S = 15
/** A stream that comes back sooner than this is not worth a banner. */
const LOST_AFTER_MS = 2_000

function useRoute(): Route {
  const [hash, setHash] = useState(location.hash)
  useEffect(() => {
    const changed = () => setHash(location.hash)
    addEventListener('hashchange', changed)
    return () => removeEventListener('hashchange', changed)
  }, [])
  return parseRoute(hash)
}

function titleOf({ view, name }: Route): string {
  const titles = {
    instances: 'Instances',
    instance: name,
    alerts: 'Alerts',
    inbox: 'Inbox',
    unknown: 'Not found',
  }
  return `${titles[view]} · Vervet`
}

function Page() {
  const route = useRoute()
  const stream = useStream()
  const { view, name } = route
  useEffect(() => {
    stream.follow(view === 'instance' ? { instance: name, metrics: LIVE_METRICS } : {})
    document.title = titleOf(route)
  }, [stream, view, name])

  // Where the reader went is read out, and the keyboard goes on from there; not on the first view.
  const [first] = useState(() => ({ view, name }))
  useEffect(() => {
    if (first.view === view && first.name === name) return
    scrollTo(0, 0)
    document.querySelector<HTMLElement>('h1')?.focus({ preventScroll: true })
  }, [view, name])

  return (
    <>
      <a class="skip" href="#content" onClick={skip}>
        Skip to the content
      </a>
      <Header view={view} />
      <Connection />
      <main id="content" tabIndex={-1}>
        {view === 'instances' && <Instances />}
        {view === 'instance' && <Instance key={name} name={name} range={route.range} />}
        {view === 'alerts' && <Alerts />}
        {view === 'inbox' && <Inbox />}
        {view === 'unknown' && (
          <section class="card">
            <h1 tabIndex={-1} class="visually-hidden">
              Not found
            </h1>
            <Empty title="There is nothing at this address">
              <a href="#/">All instances</a>
            </Empty>
          </section>
        )}
      </main>
    </>
  )
}

/** The address' hash names the view, so this link moves the focus itself. */
function skip(event: Event): void {
  event.preventDefault()
  document.getElementById('content')?.focus()
}

function Header({ view }: { view: Route['view'] }) {
  const alerts = usePolled(api.alerts, ALERTS_EVERY_S)
  useListener({ transition: alerts.refresh, resumed: alerts.refresh })
  const firing = alerts.data?.filter(({ state }) => state === 'firing').length ?? 0
  const current = (own: boolean) => (own ? 'page' : undefined)
  return (
    <header class="top">
      <div class="top-inner">
        <a class="brand" href="#/" aria-label="Vervet">
          <Mark />
          <span>Vervet</span>
        </a>
        <nav aria-label="Views">
          <a href="#/" aria-current={current(view === 'instances' || view === 'instance')}>
            Instances
          </a>
          <a href="#/alerts" aria-current={current(view === 'alerts')}>
            Alerts
            {firing > 0 && (
              <span class="count" aria-label={`${firing} firing`}>
                {firing}
              </span>
            )}
          </a>
          <a href="#/inbox" aria-current={current(view === 'inbox')}>
            Inbox
          </a>
        </nav>
        <StreamSign />
        <ThemeToggle />
      </div>
    </header>
  )
}

function StreamSign() {
  const state = useStreamState()
  const words = { open: 'Live', connecting: 'Connecting', lost: 'Reconnecting' }
  return (
    <span class={`stream ${state}`} role="status">
      {words[state]}
    </span>
  )
}

/** Says that what is shown stands still, once the stream has been away for more than a moment. */
function Connection() {
  const stream = useStream()
  const state = useStreamState()
  const [lost, setLost] = useState(false)
  useEffect(() => {
    if (state !== 'lost') {
      setLost(false)
      return
    }
    const timer = setTimeout(() => setLost(true), LOST_AFTER_MS)
    return () => clearTimeout(timer)
  }, [state])
  if (!lost) return null
  return (
    <div class="connection" role="alert">
      <p>
        <strong>The connection is lost.</strong> What you see is the last that arrived; reconnecting.
      </p>
      <button type="button" onClick={() => stream.reconnect()}>
        Try now
      </button>
    </div>
  )
}

function ThemeToggle() {
  const theme = useTheme()
  const other = theme === 'dark' ? 'light' : 'dark'
  return (
    <button
      type="button"
      class="theme"
      aria-label={`Use the ${other} theme`}
      title={`Use the ${other} theme`}
      onClick={toggleTheme}
    >
      <svg viewBox="0 0 20 20" width="18" height="18" aria-hidden="true">
        {theme === 'dark' ? (
          <path
            d="M10 3V1.5M10 18.5V17M3 10H1.5M18.5 10H17M5.05 5.05 4 4M16 16l-1.05-1.05M5.05 14.95 4 16M16 4l-1.05 1.05M13.5 10a3.5 3.5 0 1 1-7 0 3.5 3.5 0 0 1 7 0Z"
            fill="none"
            stroke="currentColor"
            stroke-width="1.5"
            stroke-linecap="round"
          />
        ) : (
          <path
            d="M16.5 11.8A7 7 0 0 1 8.2 3.5a7 7 0 1 0 8.3 8.3Z"
            fill="none"
            stroke="currentColor"
            stroke-width="1.5"
            stroke-linejoin="round"
          />
        )}
      </svg>
    </button>
  )
}

function Mark() {
  return (
    <svg viewBox="0 0 32 32" width="26" height="26" aria-hidden="true">
      <rect width="32" height="32" rx="8" class="mark-ground" />
      <path
        d="M6 9.5h4.2L16 23l5.8-13.5H26"
        class="mark-line"
        fill="none"
        stroke-width="3"
        stroke-linecap="round"
        stroke-linejoin="round"
      />
    </svg>
  )
}

render(<Page />, document.getElementById('page')!)
