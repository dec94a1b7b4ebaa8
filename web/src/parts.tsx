/** The small pieces that views are made of. Text from outside is only ever a text node. */
import type { ComponentChildren } from 'preact'
import { useStreamState } from './live.tsx'
import type { Polled } from './polling.ts'
import { useNow } from './polling.ts'
import { instanceLink } from './route.ts'
import type { Labels as LabelSet } from './series.ts'
import { formatAge, formatClock, formatFullInstant, formatInstant, seconds } from './units.ts'

type Tone = 'good' | 'warning' | 'critical' | 'quiet'

const TONES: Record<string, Tone> = {
  up: 'good',
  silent: 'critical',
  gone: 'quiet',
  firing: 'critical',
  pending: 'warning',
  inactive: 'quiet',
  resolved: 'good',
  sent: 'good',
  failed: 'critical',
}

/** A state as a word with its colour: the word alone says it too. */
export function State({ state, tone }: { state: string; tone?: Tone }) {
  return <span class={`state ${tone ?? TONES[state] ?? 'quiet'}`}>{state}</span>
}

export function Severity({ severity }: { severity: string | undefined }) {
  if (severity === undefined || severity === '') return null
  const tone: Tone = severity === 'critical' ? 'critical' : severity === 'warning' ? 'warning' : 'quiet'
  return <span class={`severity ${tone}`}>{severity}</span>
}

/** How long ago an instant was, ticking; the instant itself on hovering. */
export function Age({ at }: { at: string | null }) {
  return <Ago at={at} now={useNow()} />
}

export function Ago({ at, now }: { at: string | null; now: number }) {
  if (at === null) return <span class="faint">never</span>
  const at_s = seconds(at)
  return (
    <time dateTime={at} title={formatFullInstant(at_s)}>
      {formatAge(Math.max(0, now - at_s))}
    </time>
  )
}

export function Instant({ at }: { at: string | null }) {
  const now = useNow(60)
  if (at === null) return <span class="faint">–</span>
  const at_s = seconds(at)
  return (
    <time dateTime={at} title={formatFullInstant(at_s)}>
      {formatInstant(at_s, now)}
    </time>
  )
}

export function Labels({ labels, except = [] }: { labels: LabelSet; except?: readonly string[] }) {
  const shown = Object.entries(labels).filter(([name]) => !except.includes(name))
  if (shown.length === 0) return null
  return (
    <ul class="labels" aria-label="labels">
      {shown.map(([name, value]) => (
        <li key={name}>
          <span class="label-name">{name}</span>
          <span class="label-value">{value}</span>
        </li>
      ))}
    </ul>
  )
}

export function InstanceName({ name }: { name: string | undefined }) {
  if (name === undefined || name === '') return <span class="faint">–</span>
  return (
    <a class="instance-name" href={instanceLink(name)}>
      {name}
    </a>
  )
}

export function Section({
  title,
  aside,
  children,
  flush,
}: {
  title: string
  aside?: ComponentChildren
  children: ComponentChildren
  flush?: boolean
}) {
  return (
    <section class={flush === true ? 'card flush' : 'card'} aria-label={title}>
      <div class="card-head">
        <h2>{title}</h2>
        {aside}
      </div>
      {children}
    </section>
  )
}

export function Empty({ title, children }: { title: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <p class="empty-title">{title}</p>
      {children !== undefined && <p>{children}</p>}
    </div>
  )
}

export function Loading({ rows = 3 }: { rows?: number }) {
  return (
    <div class="loading" role="status" aria-label="Loading">
      {Array.from({ length: rows }, (_, row) => (
        <span key={row} class="bone" />
      ))}
    </div>
  )
}

/** Silent while the whole connection is lost and old data stands: the page says that once, above everything. */
export function Failure({ error, at }: { error: string; at?: number | undefined }) {
  const stream = useStreamState()
  if (stream === 'lost' && at !== undefined) return null
  return (
    <p class="failure" role="alert">
      <strong>Not up to date:</strong> {error}.{' '}
      {at === undefined ? 'Trying again.' : `This is from ${formatClock(at)}; trying again.`}
    </p>
  )
}

/** The answer, or what stands in its place: loading, failed, failed since. */
export function Answer<T>({
  of,
  rows,
  children,
}: {
  of: Polled<T>
  rows?: number
  children: (data: T) => ComponentChildren
}) {
  return (
    <>
      {of.error !== undefined && <Failure error={of.error} at={of.at} />}
      {of.data !== undefined
        ? children(of.data)
        : of.error === undefined && <Loading {...(rows === undefined ? {} : { rows })} />}
    </>
  )
}

export interface Column<T> {
  title: string
  /** `lead` names the row; `number` aligns right; `wide` takes room. */
  kind?: 'lead' | 'number' | 'wide'
  cell: (item: T) => ComponentChildren
}

/** A table that becomes a list of cards where it is narrow; the roles keep it a table for screen readers. */
export function Table<T>({
  label,
  columns,
  items,
  keyOf,
}: {
  label: string
  columns: readonly Column<T>[]
  items: readonly T[]
  keyOf: (item: T) => string | number
}) {
  return (
    <table role="table" aria-label={label}>
      <thead role="rowgroup">
        <tr role="row">
          {columns.map(({ title, kind }) => (
            <th key={title} role="columnheader" scope="col" class={kind}>
              {title}
            </th>
          ))}
        </tr>
      </thead>
      <tbody role="rowgroup">
        {items.map((item) => (
          <tr role="row" key={keyOf(item)}>
            {columns.map(({ title, kind, cell }) => (
              <td key={title} role="cell" class={kind} data-title={title}>
                {cell(item)}
              </td>
            ))}
          </tr>
        ))}
      </tbody>
    </table>
  )
}
