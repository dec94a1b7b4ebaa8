import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parseSeries, quote, Reading } from '../src/series.ts'

test('a series without labels is its metric', () => {
  assert.deepEqual(parseSeries('node_load1'), { metric: 'node_load1', labels: {} })
  assert.deepEqual(parseSeries('node_load1{}'), { metric: 'node_load1', labels: {} })
})

test('labels are read with their escapes, commas and braces', () => {
  assert.deepEqual(parseSeries('m{a="x,y}",b="\\"q\\" \\\\ \\n",c=""}'), {
    metric: 'm',
    labels: { a: 'x,y}', b: '"q" \\ \n', c: '' },
  })
})

test('text that spells no series is refused', () => {
  const texts = [
    '',
    '1m',
    'm{',
    'm{a}',
    'm{a=b}',
    'm{a="b"',
    'm{a="b"}x',
    'm{a="b" b="c"}',
    'm a',
    'm{,}',
    'm{a="b\\"}',
  ]
  for (const text of texts) assert.equal(parseSeries(text), undefined, text)
})

test('a label called __proto__ is a label like any other', () => {
  const { labels } = parseSeries('m{__proto__="x"}')!
  assert.deepEqual(Object.entries(labels), [['__proto__', 'x']])
  assert.equal(Object.getPrototypeOf(labels), Object.prototype)
})

test('what was quoted is read back unchanged', () => {
  for (const text of ['', 'a', '"', '\\', '\n', '"} or vector(1) or {a="', '<img onerror=alert(1)>'])
    assert.equal(parseSeries(`m{a=${quote(text)}}`)?.labels.a, text)
})

test('a reading gives the values of one metric', () => {
  const reading = new Reading(5, { 'a{x="1"}': 1, 'a{x="2"}': 2, b: 3, 'not a series': 4, c: null })
  assert.deepEqual(reading.of('a'), [
    { labels: { x: '1' }, value: 1 },
    { labels: { x: '2' }, value: 2 },
  ])
  assert.deepEqual(reading.of('b'), [{ labels: {}, value: 3 }])
  assert.deepEqual(reading.of('c'), [])
})
