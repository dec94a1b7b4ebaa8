/** The charts of one instance: what each asks, and how it is drawn. */
import type { Columns } from './columns.ts'
import { quote, type Labels, type Reading } from './series.ts'
import { formatValue, type Unit } from './units.ts'

export interface Query {
  /** PromQL, for one instance (a matcher such as `instance="a"`) and a window for rates (such as `90s`). */
  expression(instance: string, window: string): string
  /** What the line of a result is called. */
  name(labels: Labels): string
  /** Drawn below the axis, to be told apart from its opposite above. */
  below?: boolean
}

export interface Live {
  /** The metrics to be followed on the stream. */
  metrics: readonly string[]
  /** The panel's lines of one reading. */
  lines(reading: Reading): Map<string, number>
}

export interface Panel {
  id: string
  title: string
  unit: Unit
  queries: readonly Query[]
  /** Where the values themselves are drawn, the stream continues the history; rates are asked for again. */
  live?: Live
  stacked?: boolean
  /** The axis reaches at least this far. */
  reach?: number
  /** The axis never reaches further. */
  limit?: number
  /** A line that is the rest, and steps back. */
  quiet?: string
  /** Lines in this order; others follow by name. */
  order?: readonly string[]
  /** The panel in one figure, from the newest value of each line. */
  headline(latest: ReadonlyMap<string, number>): string
  empty: string
}

const CPU_MODES = ['user', 'system', 'iowait', 'nice', 'irq', 'softirq', 'steal', 'guest', 'guest_nice']
const IN = ' in'
const OUT = ' out'
const READ = ' read'
const WRITTEN = ' written'

function sum(values: Iterable<number>): number {
  return [...values].reduce((total, value) => total + value, 0)
}

function total(latest: ReadonlyMap<string, number>, suffix: string): number {
  return sum([...latest].filter(([name]) => name.endsWith(suffix)).map(([, value]) => Math.abs(value)))
}

function both(latest: ReadonlyMap<string, number>, down: string, up: string): string {
  if (latest.size === 0) return ''
  const [first, second] = [total(latest, down), total(latest, up)]
  return `${formatValue(first, 'bytes_per_s')}${down}, ${formatValue(second, 'bytes_per_s')}${up}`
}

/** Small file systems in memory that every host has by the dozen, and nobody fills. */
const RUN = /^\/run(\/.*)?$/
const NOT_RUN = 'mountpoint!~"/run(/.*)?"'

/** Usage by mount point; a second file system on the same one has its device in its name. */
function mountpoint(labels: Labels): string {
  return labels.mountpoint ?? labels.device ?? ''
}

const cpu: Panel = {
  id: 'cpu',
  title: 'CPU',
  unit: 'ratio',
  stacked: true,
  reach: 0.1,
  limit: 1,
  order: CPU_MODES,
  queries: [
    {
      expression: (instance, window) =>
        `avg by (mode) (rate(node_cpu_seconds_total{${instance},mode!="idle"}[${window}]))`,
      name: (labels) => labels.mode ?? '',
    },
  ],
  headline: (latest) => (latest.size === 0 ? '' : `${formatValue(sum(latest.values()), 'ratio')} busy`),
  empty: 'No CPU samples in this range.',
}

const memory: Panel = {
  id: 'memory',
  title: 'Memory',
  unit: 'bytes',
  stacked: true,
  order: ['used', 'available'],
  quiet: 'available',
  queries: [
    {
      expression: (instance) =>
        `node_memory_MemTotal_bytes{${instance}} - node_memory_MemAvailable_bytes{${instance}}`,
      name: () => 'used',
    },
    { expression: (instance) => `node_memory_MemAvailable_bytes{${instance}}`, name: () => 'available' },
  ],
  live: {
    metrics: ['node_memory_MemTotal_bytes', 'node_memory_MemAvailable_bytes'],
    lines(reading) {
      const all = reading.of('node_memory_MemTotal_bytes')[0]?.value
      const available = reading.of('node_memory_MemAvailable_bytes')[0]?.value
      if (all === undefined || available === undefined) return new Map()
      return new Map([
        ['used', all - available],
        ['available', available],
      ])
    },
  },
  headline(latest) {
    const used = latest.get('used')
    const available = latest.get('available')
    if (used === undefined || available === undefined) return ''
    return `${formatValue(used / (used + available), 'ratio')} of ${formatValue(used + available, 'bytes')}`
  },
  empty: 'No memory samples in this range.',
}

const LOADS = [
  ['node_load1', '1 minute'],
  ['node_load5', '5 minutes'],
  ['node_load15', '15 minutes'],
] as const

const load: Panel = {
  id: 'load',
  title: 'Load',
  unit: 'number',
  reach: 1,
  order: LOADS.map(([, name]) => name),
  queries: LOADS.map(([metric, name]) => ({
    expression: (instance: string) => `${metric}{${instance}}`,
    name: () => name,
  })),
  live: {
    metrics: LOADS.map(([metric]) => metric),
    lines: (reading) =>
      new Map(
        LOADS.flatMap(([metric, name]) => reading.of(metric).map(({ value }) => [name, value] as const)),
      ),
  },
  headline: (latest) => formatValue(latest.get('1 minute'), 'number'),
  empty: 'No load samples in this range.',
}

const filesystem: Panel = {
  id: 'filesystem',
  title: 'File systems',
  unit: 'ratio',
  reach: 1,
  limit: 1,
  queries: [
    {
      expression: (instance) =>
        `1 - node_filesystem_avail_bytes{${instance},${NOT_RUN}} / node_filesystem_size_bytes{${instance},${NOT_RUN}}`,
      name: mountpoint,
    },
  ],
  live: {
    metrics: ['node_filesystem_avail_bytes', 'node_filesystem_size_bytes'],
    lines(reading) {
      const sizes = new Map(
        reading.of('node_filesystem_size_bytes').map(({ labels, value }) => [mountpoint(labels), value]),
      )
      const used = new Map<string, number>()
      for (const { labels, value } of reading.of('node_filesystem_avail_bytes')) {
        const size = sizes.get(mountpoint(labels))
        if (size !== undefined && size > 0 && !RUN.test(mountpoint(labels)))
          used.set(mountpoint(labels), 1 - value / size)
      }
      return used
    },
  },
  headline(latest) {
    const [fullest] = [...latest].sort((a, b) => b[1] - a[1])
    return fullest === undefined ? '' : `${formatValue(fullest[1], 'ratio')} on ${fullest[0]}`
  },
  empty: 'No file system samples in this range.',
}

const disk: Panel = {
  id: 'disk',
  title: 'Disk',
  unit: 'bytes_per_s',
  queries: [
    {
      expression: (instance, window) => `rate(node_disk_read_bytes_total{${instance}}[${window}])`,
      name: (labels) => `${labels.device ?? ''}${READ}`,
    },
    {
      expression: (instance, window) => `rate(node_disk_written_bytes_total{${instance}}[${window}])`,
      name: (labels) => `${labels.device ?? ''}${WRITTEN}`,
      below: true,
    },
  ],
  headline: (latest) => both(latest, READ, WRITTEN),
  empty: 'No disk samples in this range.',
}

/** Traffic within the host: the loopback, and containers' bridges and their ends, which count it again. */
const NOT_LOCAL = 'device!~"lo|veth.+|docker.+|br-.+|virbr.+"'

const network: Panel = {
  id: 'network',
  title: 'Network',
  unit: 'bytes_per_s',
  queries: [
    {
      expression: (instance, window) =>
        `rate(node_network_receive_bytes_total{${instance},${NOT_LOCAL}}[${window}])`,
      name: (labels) => `${labels.device ?? ''}${IN}`,
    },
    {
      expression: (instance, window) =>
        `rate(node_network_transmit_bytes_total{${instance},${NOT_LOCAL}}[${window}])`,
      name: (labels) => `${labels.device ?? ''}${OUT}`,
      below: true,
    },
  ],
  headline: (latest) => both(latest, IN, OUT),
  empty: 'No network samples in this range.',
}

export const PANELS: readonly Panel[] = [cpu, memory, load, filesystem, disk, network]

export const LIVE_METRICS: readonly string[] = PANELS.flatMap((panel) => panel.live?.metrics ?? [])

export interface Range {
  id: string
  title: string
  range_s: number
  step_s: number
}

/** Some 180 to 360 points a line: about what a chart has pixels for. */
export const RANGES: readonly Range[] = [
  { id: '15m', title: '15 minutes', range_s: 900, step_s: 5 },
  { id: '1h', title: '1 hour', range_s: 3600, step_s: 15 },
  { id: '6h', title: '6 hours', range_s: 21600, step_s: 60 },
  { id: '24h', title: '24 hours', range_s: 86400, step_s: 240 },
]

/** Of an agent that has not said its interval. */
const USUAL_INTERVAL_S = 15

/** A rate's window holds several of the agent's samples, and leaves no instant out between steps. */
export function windowOf(range: Range, interval_s: number | undefined): string {
  return `${Math.ceil(range.step_s + 4 * (interval_s ?? USUAL_INTERVAL_S))}s`
}

export function matcher(instance: string): string {
  return `instance=${quote(instance)}`
}

/** The panel's order of lines, the same in the chart and its legend. */
export function inOrder(columns: Columns, panel: Panel): Columns {
  const rank = (name: string) => {
    const place = panel.order?.indexOf(name) ?? -1
    return place < 0 ? Number.MAX_SAFE_INTEGER : place
  }
  const lines = columns.lines.toSorted((a, b) => rank(a.name) - rank(b.name) || a.name.localeCompare(b.name))
  return { at: columns.at, lines }
}

/** The values of lines below the axis with a minus sign. */
export function negated(columns: Columns): Columns {
  const lines = columns.lines.map(({ name, values }) => ({
    name,
    values: values.map((value) => (value === null ? null : -value)),
  }))
  return { at: columns.at, lines }
}
