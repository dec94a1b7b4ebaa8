import assert from 'node:assert/strict'
import { test } from 'node:test'
import { instanceLink, parseRoute } from '../src/route.ts'

test('an address names its view', () => {
  const views = {
    '': 'instances',
    '#': 'instances',
    '#/': 'instances',
    '#/alerts': 'alerts',
    '#/inbox': 'inbox',
  }
  for (const [hash, view] of Object.entries(views)) assert.equal(parseRoute(hash).view, view, hash)
})

test('any instance name survives its link', () => {
  for (const name of ['web-1', 'a/b', 'a?b#c', '100%', 'javascript:alert(1)', '<img>', 'ü']) {
    const route = parseRoute(instanceLink(name, '6h'))
    assert.deepEqual(route, { view: 'instance', name, range: '6h' })
  }
})

test('a broken encoding stands for itself, an unknown address for nothing', () => {
  assert.equal(parseRoute('#/instance/100%').name, '100%')
  for (const hash of ['#/nothing', '#/instance', '#/alerts/x'])
    assert.equal(parseRoute(hash).view, 'unknown', hash)
})
