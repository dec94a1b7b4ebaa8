import assert from 'node:assert/strict'
import { test } from 'node:test'
import { inOrder, matcher, negated, PANELS, RANGES, windowOf } from '../src/panels.ts'
import { Reading } from '../src/series.ts'

function panel(id: string) {
  return PANELS.find((one) => one.id === id)!
}

test('a name with quotes stays inside its matcher', () => {
  assert.equal(matcher('a"} or {b="'), 'instance="a\\"} or {b=\\""')
})

test('a rate sees four samples, and every instant between two steps', () => {
  for (const range of RANGES) {
    assert.equal(windowOf(range, 5), `${range.step_s + 20}s`)
    assert.equal(windowOf(range, undefined), `${range.step_s + 60}s`)
  }
})

test('live memory is split as its history is', () => {
  const { lines } = panel('memory').live!
  const reading = new Reading(1, { node_memory_MemTotal_bytes: 10, node_memory_MemAvailable_bytes: 4 })
  assert.deepEqual(
    [...lines(reading)],
    [
      ['used', 6],
      ['available', 4],
    ],
  )
  assert.deepEqual([...lines(new Reading(1, { node_memory_MemTotal_bytes: 10 }))], [])
})

test('live usage joins available and size on the mount point, and leaves /run out', () => {
  const reading = new Reading(1, {
    'node_filesystem_avail_bytes{device="a",fstype="x",mountpoint="/"}': 25,
    'node_filesystem_size_bytes{device="a",fstype="x",mountpoint="/"}': 100,
    'node_filesystem_avail_bytes{device="t",fstype="tmpfs",mountpoint="/run/lock"}': 1,
    'node_filesystem_size_bytes{device="t",fstype="tmpfs",mountpoint="/run/lock"}': 2,
    'node_filesystem_avail_bytes{device="b",fstype="x",mountpoint="/none"}': 0,
    'node_filesystem_size_bytes{device="b",fstype="x",mountpoint="/none"}': 0,
  })
  assert.deepEqual([...panel('filesystem').live!.lines(reading)], [['/', 0.75]])
})

test('headlines sum up, whatever side of the axis a line is on', () => {
  const latest = new Map([
    ['eth0 in', 2048],
    ['eth0 out', -1024],
    ['eth1 in', 1024],
  ])
  assert.equal(panel('network').headline(latest), '3.00 KiB/s in, 1.00 KiB/s out')
  assert.equal(
    panel('cpu').headline(
      new Map([
        ['user', 0.25],
        ['system', 0.05],
      ]),
    ),
    '30.0 % busy',
  )
  for (const one of PANELS) assert.ok(['', '–'].includes(one.headline(new Map())))
})

test('lines keep the panel’s order, the rest follow by name', () => {
  const lines = ['zeta', 'system', 'alpha', 'user'].map((name) => ({ name, values: [] }))
  const names = inOrder({ at: [], lines }, panel('cpu')).lines.map(({ name }) => name)
  assert.deepEqual(names, ['user', 'system', 'alpha', 'zeta'])
})

test('lines below the axis keep their gaps', () => {
  assert.deepEqual(negated({ at: [1, 2], lines: [{ name: 'a', values: [3, null] }] }).lines[0]!.values, [
    -3,
    null,
  ])
})
