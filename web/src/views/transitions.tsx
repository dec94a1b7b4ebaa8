/** Changes of alerts' states, newest first. */
import type { Transition } from '../api.ts'
import { Empty, InstanceName, Instant, Severity, State, Table, type Column } from '../parts.tsx'
import { formatValue } from '../units.ts'

export function TransitionTable({
  transitions,
  instances = false,
}: {
  transitions: readonly Transition[]
  instances?: boolean
}) {
  if (transitions.length === 0) return <Empty title="No alert has changed its state yet" />
  const columns: Column<Transition>[] = [
    { title: 'When', cell: ({ at }) => <Instant at={at} /> },
    {
      title: 'Alert',
      kind: 'lead',
      cell: ({ rule, labels, severity }) => (
        <span class="name-cell">
          <span>{labels.alertname ?? rule}</span>
          <Severity severity={severity} />
        </span>
      ),
    },
    {
      title: 'Change',
      cell: ({ from, to }) => (
        <span class="change">
          <span class="faint">{from}</span> <span aria-label="to">→</span>{' '}
          <State state={to} tone={to === 'inactive' ? 'good' : to === 'firing' ? 'critical' : 'warning'} />
        </span>
      ),
    },
    { title: 'Value', kind: 'number', cell: ({ value }) => formatValue(value, 'number') },
  ]
  if (instances)
    columns.splice(2, 0, { title: 'Instance', cell: ({ labels }) => <InstanceName name={labels.instance} /> })
  return <Table label="Transitions" items={transitions} keyOf={({ id }) => id} columns={columns} />
}
