import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  alone,
  beside,
  EMPTY,
  followedBy,
  gridOf,
  hasValues,
  latest,
  onGrid,
  since,
  stacked,
  type Columns,
} from '../src/columns.ts'

function columns(at: number[], lines: Record<string, (number | null)[]>): Columns {
  return { at, lines: Object.entries(lines).map(([name, values]) => ({ name, values })) }
}

test('a grid lies on multiples of its step', () => {
  assert.deepEqual(gridOf(101, 129, 10), { start: 110, end: 120, step: 10 })
  assert.deepEqual(gridOf(100, 120, 10), { start: 100, end: 120, step: 10 })
})

test('a point without a sample is null, and so is one that cannot be drawn', () => {
  const grid = { start: 0, end: 40, step: 10 }
  const matrix = [
    {
      name: 'a',
      values: [
        [0, '1'],
        [20, 'NaN'],
        [30, '+Inf'],
        [40, '5'],
      ] as [number, string][],
    },
  ]
  assert.deepEqual(onGrid(matrix, grid), columns([0, 10, 20, 30, 40], { a: [1, null, null, null, 5] }))
})

test('samples outside of the grid are left out', () => {
  const matrix = [
    {
      name: 'a',
      values: [
        [-10, '1'],
        [0, '2'],
        [10, '3'],
      ] as [number, string][],
    },
  ]
  assert.deepEqual(onGrid(matrix, { start: 0, end: 0, step: 10 }), columns([0], { a: [2] }))
  assert.deepEqual(onGrid(matrix, { start: 10, end: 0, step: 10 }).at, [])
})

test('later rows follow, earlier and equal ones are dropped', () => {
  const whole = followedBy(columns([1, 2], { a: [1, 2] }), columns([2, 3], { a: [9, 3] }), 10)
  assert.deepEqual(whole, columns([1, 2, 3], { a: [1, 2, 3] }))
  assert.deepEqual(followedBy(whole, columns([3], { a: [9] }), 10), whole)
})

test('a hole that is too wide breaks the line', () => {
  const whole = followedBy(columns([0], { a: [1] }), columns([40], { a: [2] }), 30)
  assert.deepEqual(whole, columns([0, 20, 40], { a: [1, null, 2] }))
})

test('a line that only one side knows is null on the other', () => {
  const whole = followedBy(columns([1], { a: [1] }), columns([2], { b: [2] }), 10)
  assert.deepEqual(whole, columns([1, 2], { a: [1, null], b: [null, 2] }))
})

test('nothing before or after changes nothing', () => {
  const some = columns([1], { a: [1] })
  assert.equal(followedBy(EMPTY, some, 10), some)
  assert.equal(followedBy(some, EMPTY, 10), some)
})

test('old rows go, but the one that the edge is drawn from stays', () => {
  const some = columns([1, 2, 3, 4], { a: [1, 2, 3, 4] })
  assert.deepEqual(since(some, 3), columns([2, 3, 4], { a: [2, 3, 4] }))
  assert.equal(since(some, 0), some)
})

test('stacked lines add up, and a row that lacks a value has none', () => {
  const sums = stacked(columns([1, 2], { a: [1, 2], b: [10, null] }))
  assert.deepEqual(sums, columns([1, 2], { a: [1, null], b: [11, null] }))
})

test('the newest value counts only while it is fresh', () => {
  const some = columns([1, 2, 3], { a: [1, 2, null], b: [1, null, null] })
  assert.deepEqual([...latest(some, 1)], [['a', 2]])
  assert.deepEqual([...latest(some, 9)], [])
})

test('a value between gaps stands alone', () => {
  assert.deepEqual(alone([1, null, 2, 3, null, 4]), [0, 5])
  assert.deepEqual(alone([1]), [0])
  assert.deepEqual(alone([null, null]), [])
})

test('columns beside each other share their instants', () => {
  assert.deepEqual(
    beside([columns([1], { a: [1] }), columns([1], { b: [2] })]),
    columns([1], { a: [1], b: [2] }),
  )
  assert.equal(hasValues(beside([])), false)
})
