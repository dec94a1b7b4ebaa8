/** One instance: its charts, live, its alerts and what happened to them. */
import { useEffect, useRef, useState } from 'preact/hooks'
import * as api from '../api.ts'
import { Chart, type Window } from '../charts.tsx'
import { hasValues, latest } from '../columns.ts'
import { useHistory } from '../history.ts'
import { useListener, useStream } from '../live.tsx'
import { PANELS, RANGES, matcher, type Panel, type Range } from '../panels.ts'
import { Age, Answer, Empty, Failure, Labels, Loading, Section, State } from '../parts.tsx'
import { useNow, usePolled } from '../polling.ts'
import { instanceLink } from '../route.ts'
import { formatCount, formatSpan } from '../units.ts'
import { AlertList } from './alerts.tsx'
import { TransitionTable } from './transitions.tsx'

const AGENTS_EVERY_S = 10
const ALERTS_EVERY_S = 10
const UPTIME_EVERY_S = 60
const TRANSITIONS = 10
/** A value older than this (and than three steps) is not the one of now. */
const FRESH_S = 60

interface Props {
  name: string
  range: string | undefined
}

export function Instance({ name, range: rangeId }: Props) {
  const range = RANGES.find(({ id }) => id === rangeId) ?? RANGES[0]!
  const agents = usePolled(api.agents, AGENTS_EVERY_S)
  const mine = agents.data?.filter(({ instance }) => instance === name)
  const state = mine?.map((agent) => agent.state).join()
  const intervals_s = mine?.flatMap(({ interval_s }) => interval_s ?? []) ?? []
  const interval_s = intervals_s.length > 0 ? Math.max(...intervals_s) : undefined
  const [revision, setRevision] = useState(0)
  useListener({ resumed: () => setRevision((before) => before + 1) })
  // What an agent sent after a silence fills gaps that were already drawn.
  const before = useRef(state)
  useEffect(() => {
    if (before.current !== undefined && state !== before.current) setRevision((count) => count + 1)
    before.current = state
  }, [state])
  // The charts' right edge moves with the clock, so that what just came is within.
  const now = useNow()
  const window = { start: now - range.range_s, end: now, fresh: now - Math.max(FRESH_S, 3 * range.step_s) }

  return (
    <>
      <nav class="crumbs" aria-label="Breadcrumb">
        <a href="#/">Instances</a>
      </nav>
      <div class="view-head">
        <h1 tabIndex={-1}>{name}</h1>
        {mine?.map((agent) => (
          <State key={agent.job} state={agent.state} />
        ))}
        <RangePicker name={name} range={range} />
      </div>
      <Answer of={agents} rows={1}>
        {() =>
          mine?.length === 0 ? (
            <Section title="Unknown instance">
              <Empty title={`No instance is called “${name}”`}>
                It has sent nothing that is still stored. <a href="#/">All instances</a>
              </Empty>
            </Section>
          ) : (
            mine?.map((agent) => <Facts key={agent.job} agent={agent} />)
          )
        }
      </Answer>
      {/* The agent's interval decides what the charts ask for. */}
      {(mine ?? agents.error ?? []).length > 0 && (
        <div class="charts">
          {PANELS.map((panel) => (
            <PanelCard
              key={panel.id}
              panel={panel}
              name={name}
              range={range}
              interval_s={interval_s}
              revision={revision}
              window={window}
            />
          ))}
        </div>
      )}
      <InstanceAlerts name={name} />
    </>
  )
}

function RangePicker({ name, range }: { name: string; range: Range }) {
  return (
    <nav class="segments" aria-label="Time range">
      {RANGES.map(({ id, title }) => (
        <a
          key={id}
          href={instanceLink(name, id)}
          aria-current={id === range.id ? 'true' : undefined}
          title={`The last ${title}`}
        >
          {id}
        </a>
      ))}
    </nav>
  )
}

function Facts({ agent }: { agent: api.Agent }) {
  const stream = useStream()
  const [streamed, setStreamed] = useState<string>()
  useListener({
    samples: ({ job, instance, at }) => {
      if (job === agent.job && instance === agent.instance) setStreamed(at)
    },
  })
  useEffect(() => setStreamed(undefined), [stream, agent.instance])
  const expression = `node_boot_time_seconds{${matcher(agent.instance)}}`
  const booted = usePolled((signal) => api.query(expression, signal), UPTIME_EVERY_S, agent.instance)
  const bootedAt_s = Number(booted.data?.[0]?.value[1])
  return (
    <div class="facts">
      <dl>
        <Fact name="last sample">
          <Age at={streamed ?? agent.last_sample_at} />
        </Fact>
        <Fact name="up for">
          {Number.isFinite(bootedAt_s) ? formatSpan(Math.max(0, api.now() - bootedAt_s)) : '–'}
        </Fact>
        <Fact name="samples">{formatCount(agent.samples)}</Fact>
        <Fact name="messages">{formatCount(agent.messages)}</Fact>
        <Fact name="missing">
          <span class={agent.missing === 0 ? '' : 'critical-text'}>{formatCount(agent.missing)}</span>
        </Fact>
        {agent.version !== '' && <Fact name="agent">{agent.version}</Fact>}
      </dl>
      <Labels labels={{ job: agent.job, ...agent.labels }} except={['instance']} />
    </div>
  )
}

function Fact({ name, children }: { name: string; children: preact.ComponentChildren }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  )
}

interface PanelProps {
  panel: Panel
  name: string
  range: Range
  interval_s: number | undefined
  revision: number
  window: Window
}

function PanelCard({ panel, name, range, interval_s, revision, window }: PanelProps) {
  const { columns, loading, error } = useHistory(panel, name, interval_s, range, useStream(), revision)
  return (
    <figure class="card panel" aria-busy={loading} id={`panel-${panel.id}`}>
      <figcaption class="card-head">
        <h2>{panel.title}</h2>
        <span class="headline">{panel.headline(latest(columns, window.fresh))}</span>
      </figcaption>
      {error !== undefined && <Failure error={error} at={columns.at.at(-1)} />}
      {loading ? (
        <Loading rows={1} />
      ) : hasValues(columns) ? (
        <Chart panel={panel} columns={columns} window={window} />
      ) : (
        error === undefined && <Empty title={panel.empty} />
      )}
    </figure>
  )
}

function InstanceAlerts({ name }: { name: string }) {
  const alerts = usePolled(api.alerts, ALERTS_EVERY_S)
  const transitions = usePolled(
    (signal) => api.transitions({ instance: name, limit: TRANSITIONS }, signal),
    ALERTS_EVERY_S,
    name,
  )
  const refresh = () => {
    alerts.refresh()
    transitions.refresh()
  }
  useListener({ transition: refresh, resumed: refresh })
  return (
    <div class="halves">
      <Section title="Alerts" flush>
        <Answer of={alerts} rows={2}>
          {(all) => (
            <AlertList
              alerts={all.filter(({ labels }) => labels.instance === name)}
              empty="No alert is pending or firing here"
            />
          )}
        </Answer>
      </Section>
      <Section title="Latest transitions" flush>
        <Answer of={transitions} rows={2}>
          {({ items }) => <TransitionTable transitions={items} />}
        </Answer>
      </Section>
    </div>
  )
}
