/** Numbers and times as people read them. */

export type Unit = 'ratio' | 'bytes' | 'bytes_per_s' | 'number'

const BINARY = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB']
const NO_VALUE = '–'

/** Three significant digits, never in exponent form between 0.005 and a million. */
function digits(value: number): string {
  const size = Math.abs(value)
  if (size === 0) return '0'
  if (size >= 1e6) return value.toExponential(2)
  if (size >= 100) return value.toFixed(0)
  if (size >= 10) return value.toFixed(1)
  if (size >= 0.005) return value.toFixed(2)
  return value.toExponential(1)
}

export function formatBytes(bytes: number): string {
  let value = bytes
  let unit = 0
  // 1023.5 would round to "1024 KiB"
  while (Math.abs(value) >= 1023.5 && unit < BINARY.length - 1) {
    value /= 1024
    unit += 1
  }
  return `${unit === 0 ? value.toFixed(0) : digits(value)} ${BINARY[unit]}`
}

export function formatRatio(ratio: number): string {
  const percent = ratio * 100
  const size = Math.abs(percent)
  return `${percent.toFixed(size >= 99.95 || size === 0 ? 0 : 1)} %`
}

/** A value in its unit; a dash for none, and the special floats by name. */
export function formatValue(value: number | null | undefined, unit: Unit): string {
  if (value === null || value === undefined) return NO_VALUE
  if (!Number.isFinite(value)) return Number.isNaN(value) ? 'NaN' : value > 0 ? '+Inf' : '−Inf'
  switch (unit) {
    case 'ratio':
      return formatRatio(value)
    case 'bytes':
      return formatBytes(value)
    case 'bytes_per_s':
      return `${formatBytes(value)}/s`
    case 'number':
      return digits(value)
  }
}

/** A value beside an axis: no zeros that say nothing (`40 %`, `1.5 GiB`). */
export function formatTick(value: number, unit: Unit): string {
  return formatValue(value, unit)
    .replace(/(\.\d*?)0+(?=\D|$)/, '$1')
    .replace(/\.(?=\D|$)/, '')
}

const COUNT = new Intl.NumberFormat('en')

export function formatCount(count: number): string {
  return COUNT.format(count)
}

/** A span in its two largest parts: `850 ms`, `12 s`, `3 m 20 s`, `5 d 2 h`. */
export function formatSpan(span_s: number): string {
  if (span_s < 1) return `${Math.round(span_s * 1000)} ms`
  const whole = Math.round(span_s)
  const parts: [number, string][] = [
    [Math.floor(whole / 86400), 'd'],
    [Math.floor(whole / 3600) % 24, 'h'],
    [Math.floor(whole / 60) % 60, 'm'],
    [whole % 60, 's'],
  ]
  const first = parts.findIndex(([count]) => count > 0)
  return parts
    .slice(first, first + 2)
    .filter(([count]) => count > 0)
    .map(([count, unit]) => `${count} ${unit}`)
    .join(' ')
}

/** How long ago, in one part, so that it stays calm while it ticks: `now`, `8 s`, `12 m`, `3 d`. */
export function formatAge(age_s: number): string {
  if (age_s < 1) return 'now'
  if (age_s < 100) return `${Math.floor(age_s)} s`
  if (age_s < 6000) return `${Math.floor(age_s / 60)} m`
  if (age_s < 48 * 3600) return `${Math.floor(age_s / 3600)} h`
  return `${Math.floor(age_s / 86400)} d`
}

const CLOCK = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit', second: '2-digit' })
const DAY = new Intl.DateTimeFormat('en-GB', { day: 'numeric', month: 'short' })
const FULL = new Intl.DateTimeFormat('en-GB', { dateStyle: 'medium', timeStyle: 'long' })

/** Wall clock time where the reader is: `14:03:05`. */
export function formatClock(at_s: number): string {
  return CLOCK.format(at_s * 1000)
}

/** `14:03:05` today, `19 Nov 14:03:05` on other days. */
export function formatInstant(at_s: number, now_s: number): string {
  const day = DAY.format(at_s * 1000)
  const clock = formatClock(at_s)
  const sameDay = day === DAY.format(now_s * 1000) && Math.abs(now_s - at_s) < 86400
  return sameDay ? clock : `${day} ${clock}`
}

export function formatFullInstant(at_s: number): string {
  return FULL.format(at_s * 1000)
}

/** Labels of a time axis: the day where a day begins, seconds only where ticks are closer than a minute. */
export function formatTicks(ticks: number[]): string[] {
  const close = ticks.length > 1 && ticks[1]! - ticks[0]! < 60
  return ticks.map((at) => {
    const clock = formatClock(at)
    if (clock === '00:00:00') return DAY.format(at * 1000)
    return close ? clock : clock.slice(0, 5)
  })
}

/** Unix seconds of an RFC 3339 instant; NaN where it isn't one. */
export function seconds(instant: string): number {
  return Date.parse(instant) / 1000
}
