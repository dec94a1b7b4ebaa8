/** All instances at a glance, and the proof that no sample was lost. */
import { useMemo, useRef, useState } from 'preact/hooks'
import * as api from '../api.ts'
import { useListener } from '../live.tsx'
import { Ago, Answer, Empty, InstanceName, State, Table, type Column } from '../parts.tsx'
import { useNow, usePolled } from '../polling.ts'
import { formatCount, formatValue, seconds } from '../units.ts'

const AGENTS_EVERY_S = 10
const PIPELINE_EVERY_S = 5

/** One figure per instance. */
type Figures = ReadonlyMap<string, number>

interface Glance {
  cpu: Figures
  memory: Figures
  load: Figures
}

const NONE: Glance = { cpu: new Map(), memory: new Map(), load: new Map() }

async function glance(signal: AbortSignal): Promise<Glance> {
  const figures = async (expression: string): Promise<Figures> => {
    const vector = await api.query(expression, signal)
    return new Map(vector.map(({ metric, value }) => [metric.instance ?? '', Number(value[1])]))
  }
  const [cpu, memory, load] = await Promise.all([
    figures('1 - avg by (instance) (rate(node_cpu_seconds_total{mode="idle"}[1m]))'),
    figures('1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes'),
    figures('node_load1'),
  ])
  return { cpu, memory, load }
}

export function Instances() {
  const agents = usePolled(api.agents, AGENTS_EVERY_S)
  const figures = usePolled(glance, AGENTS_EVERY_S)
  const alerts = usePolled(api.alerts, AGENTS_EVERY_S)
  const streamed = useStreamed(agents.data, agents.refresh)
  const [filter, setFilter] = useState('')

  const firing = useMemo(() => {
    const counts = new Map<string, number>()
    for (const { state, labels } of alerts.data ?? []) {
      const name = labels.instance ?? ''
      if (state === 'firing') counts.set(name, (counts.get(name) ?? 0) + 1)
    }
    return counts
  }, [alerts.data])

  return (
    <>
      <div class="view-head">
        <h1 tabIndex={-1}>Instances</h1>
        {agents.data !== undefined && <Summary agents={agents.data} />}
        <label class="filter">
          <span class="visually-hidden">Filter instances by name, job or label</span>
          <input
            type="search"
            placeholder="Filter by name, job or label"
            value={filter}
            onInput={(event) => setFilter(event.currentTarget.value)}
          />
        </label>
      </div>
      <Proof />
      <section class="card flush" aria-label="All instances">
        <Answer of={agents} rows={5}>
          {(all) => {
            const shown = all.filter((agent) => matches(agent, filter)).toSorted(byUrgency)
            if (all.length === 0)
              return (
                <Empty title="No agent has reported yet">
                  An instance appears here with its first samples. Start an agent with{' '}
                  <code>vervet agent</code>.
                </Empty>
              )
            if (shown.length === 0) return <Empty title={`No instance matches “${filter}”`} />
            return (
              <Table
                label="Instances"
                items={shown}
                keyOf={(agent) => keyOf(agent)}
                columns={columns(figures.data ?? NONE, firing, streamed)}
              />
            )
          }}
        </Answer>
      </section>
    </>
  )
}

function keyOf({ job, instance }: { job: string; instance: string }): string {
  return JSON.stringify([job, instance])
}

/** The newest instant that the stream told of each instance; an unknown instance has the list asked for again. */
function useStreamed(
  agents: readonly api.Agent[] | undefined,
  refresh: () => void,
): ReadonlyMap<string, string> {
  const newest = useRef(new Map<string, string>())
  const asked = useRef(new Set<string>())
  useListener({
    samples(samples) {
      const key = keyOf(samples)
      newest.current.set(key, samples.at)
      const stale = agents?.find((agent) => keyOf(agent) === key)?.state !== 'up'
      if (agents !== undefined && stale && !asked.current.has(key)) {
        asked.current.add(key)
        refresh()
      } else if (!stale) {
        asked.current.delete(key)
      }
    },
    transition: refresh,
    resumed: refresh,
  })
  return newest.current
}

function newer(first: string | null, second: string | undefined): string | null {
  if (second === undefined) return first
  return first === null || seconds(second) > seconds(first) ? second : first
}

function matches({ job, instance, labels }: api.Agent, filter: string): boolean {
  const texts = [job, instance, ...Object.entries(labels).map(([name, value]) => `${name}=${value}`)]
  const text = texts.join('\n').toLowerCase()
  return filter
    .toLowerCase()
    .split(/\s+/)
    .every((word) => text.includes(word))
}

const URGENCY: Record<api.Agent['state'], number> = { silent: 0, up: 1, gone: 2 }

function byUrgency(a: api.Agent, b: api.Agent): number {
  const byName = a.instance.localeCompare(b.instance, 'en', { numeric: true })
  return URGENCY[a.state] - URGENCY[b.state] || byName || a.job.localeCompare(b.job)
}

function columns(
  figures: Glance,
  firing: Figures,
  streamed: ReadonlyMap<string, string>,
): Column<api.Agent>[] {
  return [
    {
      title: 'Instance',
      kind: 'lead',
      cell: ({ instance, job }) => (
        <span class="name-cell">
          <InstanceName name={instance} />
          <span class="faint">{job}</span>
          {firing.has(instance) && (
            <a class="firing-count" href="#/alerts">
              {firing.get(instance)} firing
            </a>
          )}
        </span>
      ),
    },
    { title: 'State', cell: ({ state }) => <State state={state} /> },
    {
      title: 'Last sample',
      kind: 'number',
      cell: (agent) => <LastSample agent={agent} streamed={streamed} />,
    },
    {
      title: 'CPU',
      cell: ({ instance, state }) => <Share value={figures.cpu.get(instance)} quiet={state !== 'up'} />,
    },
    {
      title: 'Memory',
      cell: ({ instance, state }) => <Share value={figures.memory.get(instance)} quiet={state !== 'up'} />,
    },
    {
      title: 'Load',
      kind: 'number',
      cell: ({ instance, state }) => (
        <span class={state === 'up' ? '' : 'faint'}>{formatValue(figures.load.get(instance), 'number')}</span>
      ),
    },
    {
      title: 'Missing',
      kind: 'number',
      cell: ({ missing, messages }) => (
        <span
          class={missing === 0 ? 'faint' : 'critical-text'}
          title={`${formatCount(messages)} messages arrived, ${formatCount(missing)} between the first and the last did not`}
        >
          {formatCount(missing)}
        </span>
      ),
    },
  ]
}

/** Reads what the stream told at each tick, so that a stream of many hosts renders nothing by itself. */
function LastSample({ agent, streamed }: { agent: api.Agent; streamed: ReadonlyMap<string, string> }) {
  const now = useNow()
  return <Ago at={newer(agent.last_sample_at, streamed.get(keyOf(agent)))} now={now} />
}

/** A share of one as a bar and in words. */
function Share({ value, quiet }: { value: number | undefined; quiet: boolean }) {
  if (value === undefined || !Number.isFinite(value)) return <span class="faint">–</span>
  const share = Math.min(1, Math.max(0, value))
  const tone = share >= 0.95 ? 'critical' : share >= 0.85 ? 'warning' : ''
  return (
    <span class={`share ${quiet ? 'faint' : tone}`}>
      <span class="bar" aria-hidden="true">
        <span style={{ width: `${share * 100}%` }} />
      </span>
      <span class="share-value">{formatValue(share, 'ratio')}</span>
    </span>
  )
}

function Summary({ agents }: { agents: readonly api.Agent[] }) {
  const states = (['up', 'silent', 'gone'] as const).map(
    (state) => [state, agents.filter((agent) => agent.state === state).length] as const,
  )
  return (
    <p class="summary">
      {states
        .filter(([state, count]) => count > 0 || state === 'up')
        .map(([state, count]) => (
          <State
            key={state}
            state={`${formatCount(count)} ${state}`}
            tone={count === 0 ? 'quiet' : state === 'up' ? 'good' : state === 'silent' ? 'critical' : 'quiet'}
          />
        ))}
    </p>
  )
}

/** generated = stored + dropped + in flight: whether it holds is computed here, from what the api counted. */
function Proof() {
  const pipeline = usePolled(api.pipeline, PIPELINE_EVERY_S)
  return (
    <section class="card proof" aria-label="Pipeline">
      <Answer of={pipeline} rows={1}>
        {({ generated, stored, dropped, in_flight }) => {
          const missing = generated - stored - dropped - in_flight
          return (
            <>
              <dl class="equation">
                <Term name="generated" count={generated} />
                <span aria-hidden="true">=</span>
                <Term name="stored" count={stored} />
                <span aria-hidden="true">+</span>
                <Term name="dropped" count={dropped} {...(dropped > 0 ? { tone: 'warning-text' } : {})} />
                <span aria-hidden="true">+</span>
                <Term name="in flight" count={in_flight} />
              </dl>
              <p class={missing === 0 ? 'verdict good-text' : 'verdict critical-text'}>
                {missing === 0
                  ? 'Every sample is accounted for'
                  : missing > 0
                    ? `${formatCount(missing)} samples are unaccounted for`
                    : `${formatCount(-missing)} samples are counted twice`}
              </p>
            </>
          )
        }}
      </Answer>
    </section>
  )
}

function Term({ name, count, tone = '' }: { name: string; count: number; tone?: string }) {
  return (
    <div class="term">
      <dt>{name}</dt>
      <dd class={tone}>{formatCount(count)}</dd>
    </div>
  )
}
