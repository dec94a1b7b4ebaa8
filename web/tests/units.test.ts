import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  formatAge,
  formatSpan,
  formatTick,
  formatTicks,
  formatValue,
  seconds,
  type Unit,
} from '../src/units.ts'

test('values are told in their unit, with three digits', () => {
  const cases: [number, Unit, string][] = [
    [0, 'bytes', '0 B'],
    [1023, 'bytes', '1023 B'],
    [1024, 'bytes', '1.00 KiB'],
    [1023.7 * 1024, 'bytes', '1.00 MiB'],
    [-1536, 'bytes', '-1.50 KiB'],
    [2 ** 80, 'bytes', '1.05e+6 EiB'],
    [5 * 2 ** 20, 'bytes_per_s', '5.00 MiB/s'],
    [0, 'ratio', '0 %'],
    [0.1234, 'ratio', '12.3 %'],
    [0.9996, 'ratio', '100 %'],
    [1, 'ratio', '100 %'],
    [0, 'number', '0'],
    [0.001, 'number', '1.0e-3'],
    [1.5, 'number', '1.50'],
    [12.345, 'number', '12.3'],
    [1234.5, 'number', '1235'],
    [Infinity, 'number', '+Inf'],
    [-Infinity, 'bytes', '−Inf'],
    [NaN, 'ratio', 'NaN'],
  ]
  for (const [value, unit, text] of cases) assert.equal(formatValue(value, unit), text)
})

test('no value is a dash', () => {
  assert.equal(formatValue(null, 'bytes'), '–')
  assert.equal(formatValue(undefined, 'ratio'), '–')
})

test('ticks of an axis carry no idle zeros', () => {
  assert.equal(formatTick(0.4, 'ratio'), '40 %')
  assert.equal(formatTick(0.025, 'ratio'), '2.5 %')
  assert.equal(formatTick(16 * 2 ** 30, 'bytes'), '16 GiB')
  assert.equal(formatTick(1.5 * 2 ** 20, 'bytes_per_s'), '1.5 MiB/s')
  assert.equal(formatTick(100, 'number'), '100')
})

test('spans are told in their two largest parts', () => {
  const cases: [number, string][] = [
    [0.25, '250 ms'],
    [59, '59 s'],
    [60, '1 m'],
    [200, '3 m 20 s'],
    [3600, '1 h'],
    [90_061, '1 d 1 h'],
  ]
  for (const [span_s, text] of cases) assert.equal(formatSpan(span_s), text)
})

test('an age has one part and changes seldom', () => {
  const cases: [number, string][] = [
    [0.4, 'now'],
    [1, '1 s'],
    [99, '99 s'],
    [100, '1 m'],
    [6000, '1 h'],
    [48 * 3600, '2 d'],
  ]
  for (const [age_s, text] of cases) assert.equal(formatAge(age_s), text)
})

test('a time axis shows seconds only where ticks are closer than a minute', () => {
  assert.match(formatTicks([1_700_000_010, 1_700_000_020])[0]!, /^\d\d:\d\d:\d\d$/)
  assert.match(formatTicks([1_700_000_100, 1_700_000_400])[0]!, /^\d\d:\d\d$/)
})

test('instants are read as unix seconds', () => {
  assert.equal(seconds('1970-01-01T00:01:00.500Z'), 60.5)
  assert.ok(Number.isNaN(seconds('yesterday')))
})
