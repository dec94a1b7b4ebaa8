/** Alerts that are pending or firing, what changed last, and the rules. */
import { useState } from 'preact/hooks'
import * as api from '../api.ts'
import { useListener } from '../live.tsx'
import { Age, Answer, Empty, InstanceName, Labels, Section, Severity, State, Table } from '../parts.tsx'
import { usePolled } from '../polling.ts'
import { formatSpan, formatValue, seconds } from '../units.ts'
import { More } from './more.tsx'
import { TransitionTable } from './transitions.tsx'

const EVERY_S = 10
const TRANSITIONS = 25
const RANK: Record<string, number> = { critical: 0, warning: 1 }

export function Alerts() {
  const [limit, setLimit] = useState(TRANSITIONS)
  const alerts = usePolled(api.alerts, EVERY_S)
  const transitions = usePolled((signal) => api.transitions({ limit }, signal), EVERY_S, '', limit)
  const groups = usePolled(api.ruleGroups, EVERY_S)
  const refresh = () => {
    alerts.refresh()
    transitions.refresh()
    groups.refresh()
  }
  useListener({ transition: refresh, resumed: refresh })
  const count = (state: api.AlertState) => alerts.data?.filter((alert) => alert.state === state).length ?? 0

  return (
    <>
      <div class="view-head">
        <h1 tabIndex={-1}>Alerts</h1>
        {alerts.data !== undefined && (
          <p class="summary">
            <State state={`${count('firing')} firing`} tone={count('firing') > 0 ? 'critical' : 'quiet'} />
            <State state={`${count('pending')} pending`} tone={count('pending') > 0 ? 'warning' : 'quiet'} />
          </p>
        )}
      </div>
      <Section title="Firing and pending" flush>
        <Answer of={alerts} rows={2}>
          {(all) => <AlertList alerts={all} empty="All quiet: no alert is pending or firing" instances />}
        </Answer>
      </Section>
      <Section title="Latest transitions" flush>
        <Answer of={transitions}>
          {({ items, next }) => (
            <>
              <TransitionTable transitions={items} instances />
              <More next={next} onMore={() => setLimit(limit + TRANSITIONS)} />
            </>
          )}
        </Answer>
      </Section>
      <Section title="Rules" flush>
        <Answer of={groups}>{(all) => <Rules groups={all} />}</Answer>
      </Section>
    </>
  )
}

function byUrgency(a: api.Alert, b: api.Alert): number {
  const byState = Number(b.state === 'firing') - Number(a.state === 'firing')
  const bySeverity = (RANK[a.labels.severity ?? ''] ?? 2) - (RANK[b.labels.severity ?? ''] ?? 2)
  return byState || bySeverity || seconds(b.activeAt) - seconds(a.activeAt)
}

export function AlertList({
  alerts,
  empty,
  instances = false,
}: {
  alerts: readonly api.Alert[]
  empty: string
  instances?: boolean
}) {
  const shown = alerts.filter(({ state }) => state !== 'inactive').toSorted(byUrgency)
  if (shown.length === 0) return <Empty title={empty} />
  return (
    <ul class="alerts" aria-label="Alerts">
      {shown.map(({ labels, annotations, state, activeAt, value }) => (
        <li
          key={JSON.stringify(labels)}
          class={`alert ${state === 'pending' ? 'pending' : severityTone(labels.severity)}`}
        >
          <div class="alert-head">
            <State state={state} />
            <strong>{labels.alertname}</strong>
            <Severity severity={labels.severity} />
            {instances && <InstanceName name={labels.instance} />}
            <span class="alert-when">
              for <Age at={activeAt} />
            </span>
          </div>
          {annotations.summary !== undefined && <p>{annotations.summary}</p>}
          {annotations.description !== undefined && <p class="muted">{annotations.description}</p>}
          <div class="alert-foot">
            <span class="value">value {formatValue(Number(value), 'number')}</span>
            <Labels labels={labels} except={['alertname', 'severity', 'instance']} />
          </div>
        </li>
      ))}
    </ul>
  )
}

function severityTone(severity: string | undefined): string {
  return severity === 'critical' || severity === undefined ? 'critical' : 'warning'
}

function Condition({ rule: { query, noData } }: { rule: api.Rule }) {
  const silence = noData == null ? '' : `no samples for ${formatSpan(noData)}`
  return (
    <span class="muted">
      {query !== '' && <code class="expression">{query}</code>}
      {query !== '' && silence !== '' && ', or '}
      {silence}
    </span>
  )
}

interface NamedRule extends api.Rule {
  group: string
}

function Rules({ groups }: { groups: readonly api.RuleGroup[] }) {
  const rules: NamedRule[] = groups.flatMap(({ name, rules }) =>
    rules.map((rule) => ({ ...rule, group: name })),
  )
  if (rules.length === 0) return <Empty title="No rules are loaded" />
  return (
    <Table
      label="Rules"
      items={rules}
      keyOf={({ group, name, query, labels }) => JSON.stringify([group, name, query, labels])}
      columns={[
        {
          title: 'State',
          cell: ({ state, health }) => (
            <State
              state={health === 'err' ? 'failing' : (state ?? 'inactive')}
              {...(health === 'err' ? { tone: 'critical' as const } : {})}
            />
          ),
        },
        {
          title: 'Rule',
          kind: 'lead',
          cell: ({ name, group, labels }) => (
            <span class="name-cell">
              <span>{name}</span>
              <Severity severity={labels.severity} />
              <span class="faint">{group}</span>
            </span>
          ),
        },
        { title: 'Fires when', kind: 'wide', cell: (rule) => <Condition rule={rule} /> },
        {
          title: 'For',
          kind: 'number',
          cell: ({ duration }) => (duration === 0 ? 'at once' : formatSpan(duration)),
        },
      ]}
    />
  )
}
