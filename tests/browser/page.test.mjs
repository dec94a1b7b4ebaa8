// The page against a stand-in api, in a real browser: hostile names, gaps, faults, a lost connection.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { accessibilityFaults, drawn, launch, open } from './chromium.mjs'
import { Fake } from './fake.mjs'
import { fleet, HOSTILE } from './hosts.mjs'

const VIEWS = ['#/', '#/instance/web-1', `#/instance/${encodeURIComponent(HOSTILE)}`, '#/alerts', '#/inbox']
/** What the browser itself reports of a request that the test makes fail. */
const REFUSED =
  /Failed to load resource|ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED_ENCODING|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET|ERR_SOCKET_NOT_CONNECTED/

let browser
before(async () => (browser = await launch()))
after(() => browser.close())

/** Opens the address on a fake api, and fails for anything that went wrong on the page meanwhile. */
async function visit(hash, body, { world = fleet(), ...options } = {}) {
  const fake = new Fake(world)
  const address = await fake.start()
  const { page, faults, close } = await open(browser, address + hash, options)
  try {
    await body(page, fake)
    assert.deepEqual(faults, [])
  } finally {
    await close()
    await fake.stop()
  }
}

const row = (page, name) => page.locator('tbody tr', { has: page.getByRole('link', { name, exact: true }) })

test('instances show their state, age and load at a glance', () =>
  visit('#/', async (page) => {
    const db = row(page, 'db-1')
    await db.getByText('up', { exact: true }).waitFor()
    await db.locator('.share-value').nth(1).waitFor()
    assert.match(await db.innerText(), /1 firing/)
    assert.match(await db.locator('[data-title=CPU]').innerText(), /^\d+\.\d %$/)
    assert.equal(await db.locator('[data-title=Missing]').innerText(), '3')
    assert.equal(await row(page, 'edge-berlin-07').locator('[data-title=State]').innerText(), 'silent')
    assert.equal(await row(page, 'build-old').locator('[data-title=State]').innerText(), 'gone')
    assert.equal(await page.locator('tbody tr').count(), 6)
  }))

test('a fleet that takes several pages is shown whole', () =>
  visit('#/', (page) => page.waitForFunction(() => document.querySelectorAll('tbody tr').length === 6), {
    world: { ...fleet(), cap: 4 },
  }))

test('a list that was cut shows more on demand', () => {
  const world = fleet()
  world.transitions = Array.from({ length: 60 }, (_, id) => ({ ...world.transitions[0], id }))
  return visit(
    '#/alerts',
    async (page) => {
      const rows = page.getByRole('table', { name: 'Transitions' }).locator('tbody tr')
      await rows.nth(24).waitFor()
      assert.equal(await rows.count(), 25)
      await page.getByRole('button', { name: 'Show more' }).click()
      await rows.nth(49).waitFor()
    },
    { world },
  )
})

test('the age of the last sample ticks', () =>
  visit('#/', async (page, fake) => {
    const age = row(page, 'edge-berlin-07').locator('time')
    fake.world.agents.find(({ instance }) => instance === 'edge-berlin-07').last_sample_at = new Date(
      Date.now() - 20_000,
    ).toISOString()
    await page.reload()
    await age.filter({ hasText: /^2\d s$/ }).waitFor()
    const first = await age.innerText()
    await page.waitForFunction(
      (text) => ![...document.querySelectorAll('time')].some((one) => one.innerText === text),
      first,
    )
  }))

test('the proof adds up, and says so when it does not', () =>
  visit('#/', async (page, fake) => {
    await page.getByText('Every sample is accounted for').waitFor()
    fake.world.pipeline.stored -= 1_000
    await page.getByText('1,000 samples are unaccounted for').waitFor()
  }))

test('the filter finds instances by words of name, job and labels', () =>
  visit('#/', async (page) => {
    await row(page, 'web-1').waitFor()
    const filter = page.getByRole('searchbox')
    await filter.fill('WEB site=berlin')
    await page.waitForFunction(() => document.querySelectorAll('tbody tr').length === 2)
    await filter.fill('nothing like it')
    await page.getByText('No instance matches “nothing like it”').waitFor()
  }))

test('names that are code are shown as text, everywhere', async () => {
  for (const hash of VIEWS) {
    await visit(hash, async (page) => {
      await page.waitForFunction(() => document.querySelector('.loading') === null)
      if (hash !== '#/instance/web-1') await page.getByText(HOSTILE, { exact: true }).first().waitFor()
      assert.equal(await page.locator('img, [href^="javascript:" i], style, script:not([src])').count(), 0)
      assert.equal(
        await page.evaluate(() =>
          [...document.querySelectorAll('*')].some((one) =>
            [...one.attributes].some(({ name }) => name.startsWith('on')),
          ),
        ),
        false,
      )
    })
  }
})

test('the charts of an instance are drawn, with its gap as a gap', () =>
  visit('#/instance/web-1', async (page) => {
    for (const panel of ['cpu', 'memory', 'load', 'filesystem', 'disk', 'network']) {
      await drawn(page, `#panel-${panel} canvas`, /#{20,}\.{20,}#{20,}/)
    }
  }))

test('a single sample is drawn as a point', () => {
  const world = fleet()
  world.gap = [0, Date.now() / 1000 - 6]
  return visit('#/instance/edge-berlin-07', (page) => drawn(page, '#panel-load canvas'), { world })
})

test('values stream into the charts without being asked for', () =>
  visit('#/instance/web-1', async (page, fake) => {
    const value = page.locator('#panel-load .legend-value').first()
    await value.filter({ hasText: /\d/ }).waitFor()
    const asked = () =>
      fake.requests.filter(
        ({ path, query }) => path === '/api/v1/query_range' && query.get('query').startsWith('node_load1{'),
      ).length
    const before = asked()
    const first = await value.innerText()
    await page.waitForFunction(
      (text) => document.querySelector('#panel-load .legend-value').innerText !== text,
      first,
    )
    assert.equal(asked(), before)
  }))

test('a range is chosen by its link and kept in the address', () =>
  visit('#/instance/web-1', async (page, fake) => {
    await page.getByRole('link', { name: '24h' }).click()
    await page.waitForURL(/range=24h/)
    await page.locator('#panel-cpu canvas').waitFor()
    const asked = fake.requests.filter(({ path }) => path === '/api/v1/query_range').at(-1).query
    assert.equal(asked.get('step'), '240')
    assert.ok(Number(asked.get('end')) - Number(asked.get('start')) > 86_000)
    assert.equal(await page.locator('.segments [aria-current]').innerText(), '24h')
  }))

test('one cursor reads all charts', () =>
  visit('#/instance/web-1', async (page) => {
    for (const panel of ['cpu', 'network']) await page.locator(`#panel-${panel} canvas`).waitFor()
    await page.hover('#panel-cpu .chart', { position: { x: 120, y: 60 } })
    for (const panel of ['cpu', 'network'])
      await page.locator(`#panel-${panel} .legend-time`, { hasText: /\d\d:\d\d:\d\d/ }).waitFor()
  }))

test('the keyboard reaches and hides a line', () =>
  visit('#/instance/web-1', async (page) => {
    const user = page.locator('#panel-cpu .legend button').first()
    await user.focus()
    await page.keyboard.press('Space')
    await page.locator('#panel-cpu .legend button[aria-pressed=false]').waitFor()
    assert.equal(await user.getAttribute('aria-pressed'), 'false')
    await page.keyboard.press('Space')
    await page.locator('#panel-cpu .legend button[aria-pressed=false]').waitFor({ state: 'detached' })
  }))

test('the first Tab skips to the content, and a new view takes the focus to its title', () =>
  visit('#/', async (page) => {
    await row(page, 'web-1').waitFor()
    await page.keyboard.press('Tab')
    assert.equal(await page.evaluate(() => document.activeElement.className), 'skip')
    await page.keyboard.press('Enter')
    assert.equal(await page.evaluate(() => document.activeElement.id), 'content')
    await page.getByRole('link', { name: 'Inbox' }).click()
    await page.waitForFunction(
      () => document.activeElement.innerText === 'Inbox' && document.activeElement.tagName === 'H1',
    )
    assert.equal(await page.title(), 'Inbox · Vervet')
  }))

test('alerts show what fires, what changed and the rules', () =>
  visit('#/alerts', async (page) => {
    const first = page.locator('.alert').first()
    await first.getByText('No samples from edge-berlin-07 for 5 minutes').waitFor()
    assert.match(
      await first.innerText(),
      /firing[\s\S]*AgentSilent[\s\S]*critical[\s\S]*for 4 m[\s\S]*value 340/,
    )
    await page.getByRole('table', { name: 'Transitions' }).getByRole('row').nth(5).waitFor()
    await page.getByRole('table', { name: 'Rules' }).getByText('node_load5 > 4').waitFor()
    await page.getByRole('table', { name: 'Rules' }).getByText('no samples for 1 m').waitFor()
    assert.equal(await page.locator('.count').innerText(), '2')
  }))

test('a transition on the stream brings the new alerts at once', () =>
  visit('#/alerts', async (page, fake) => {
    await page.locator('.stream.open').waitFor()
    await page.locator('.alert').nth(3).waitFor()
    const alert = {
      ...fake.world.alerts[0],
      labels: { alertname: 'DiskGone', instance: 'web-2', severity: 'critical' },
      activeAt: new Date().toISOString(),
    }
    fake.world.alerts.push(alert)
    fake.emit(
      'transition',
      {
        id: 7,
        rule: 'DiskGone',
        severity: 'critical',
        labels: alert.labels,
        annotations: {},
        from: 'pending',
        to: 'firing',
        at: alert.activeAt,
        value: 1,
      },
      7,
    )
    await page.locator('.alert', { hasText: 'DiskGone' }).waitFor({ timeout: 3_000 })
    await page.locator('.count', { hasText: '3' }).waitFor({ timeout: 3_000 })
  }))

test('the inbox shows messages and how each was delivered', () =>
  visit('#/inbox', async (page) => {
    await page.getByText('[FIRING:1] AgentSilent edge-berlin-07').waitFor()
    await page.locator('summary').first().click()
    await page.locator('.message-alerts').first().getByRole('link', { name: 'edge-berlin-07' }).waitFor()
    const failed = page.locator('tr', { hasText: 'SMTP 550 mailbox unavailable' })
    assert.match(await failed.innerText(), /failed[\s\S]*mail[\s\S]*8[\s\S]*all alerts of the group resolved/)
  }))

test('an empty Vervet says what to do next', async () => {
  const world = { ...fleet(), agents: [], alerts: [], transitions: [], inbox: [], deliveries: [], groups: [] }
  const texts = {
    '#/': 'No agent has reported yet',
    '#/alerts': 'All quiet',
    '#/inbox': 'The inbox is empty',
    '#/instance/x': 'No instance is called “x”',
    '#/nowhere': 'There is nothing at this address',
  }
  for (const [hash, text] of Object.entries(texts))
    await visit(hash, (page) => page.getByText(text).waitFor(), { world })
})

test('a part that fails says why and recovers, the others go on', () => {
  const world = fleet()
  world.broken.add('/api/v1/query_range')
  return visit(
    '#/instance/web-1',
    async (page, fake) => {
      await page.locator('#panel-cpu').getByText('the database is on fire').waitFor()
      await page.getByText('Load of web-1 is above 4 for each core').waitFor()
      fake.world.broken.clear()
      await page.locator('#panel-cpu canvas').waitFor()
      await page.locator('.failure').first().waitFor({ state: 'detached' })
    },
    { world, allowed: [REFUSED] },
  )
})

test('a lost connection is shown, old values stand, and the page comes back by itself', () =>
  visit(
    '#/instance/web-1',
    async (page, fake) => {
      await page.locator('.stream.open').waitFor()
      await page.locator('#panel-cpu canvas').waitFor()
      await fake.stop()
      await page.getByText('The connection is lost.').waitFor()
      assert.equal(await page.locator('#panel-cpu canvas').count(), 1)
      await fake.start()
      await page.getByText('The connection is lost.').waitFor({ state: 'detached' })
      await page.locator('.stream.open').waitFor()
    },
    { allowed: [REFUSED] },
  ))

test('a client that was cut off as too slow resumes after the last transition it saw', () =>
  visit(
    '#/',
    async (page, fake) => {
      await page.locator('.stream.open').waitFor()
      fake.emit('transition', { ...fake.world.transitions[0], id: 41 }, 41)
      fake.lag()
      await page.locator('.stream.lost').waitFor()
      await page.locator('.stream.open').waitFor()
      const reopened = fake.requests.filter(({ path }) => path === '/v1/stream').at(-1)
      assert.equal(reopened.headers['last-event-id'], '41')
    },
    { allowed: [REFUSED] },
  ))

test('the theme follows the system until one is chosen, which is remembered', () =>
  visit(
    '#/',
    async (page) => {
      const ground = () => page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor)
      await row(page, 'web-1').waitFor()
      const dark = await ground()
      await page.getByRole('button', { name: 'Use the light theme' }).click()
      const light = await ground()
      assert.notEqual(light, dark)
      await page.reload()
      await page.getByRole('button', { name: 'Use the dark theme' }).waitFor()
      assert.equal(await ground(), light)
    },
    { theme: 'dark' },
  ))

// Contrast hangs on the theme, structure on the width: two of the four say it all.
for (const [theme, width] of [
  ['light', 1280],
  ['dark', 360],
]) {
  test(`every view is accessible and fits, ${theme} and ${width} pixels wide`, async () => {
    for (const hash of VIEWS) {
      await visit(
        hash,
        async (page) => {
          await page.locator('.stream.open').waitFor()
          await page.waitForFunction(() => document.querySelector('.loading') === null)
          assert.deepEqual(await accessibilityFaults(page), [], hash)
          const over = await page.evaluate(
            () => document.documentElement.scrollWidth - document.documentElement.clientWidth,
          )
          assert.ok(over <= 0, `${hash} is ${over} pixels too wide`)
        },
        { theme, width },
      )
    }
  })
}
