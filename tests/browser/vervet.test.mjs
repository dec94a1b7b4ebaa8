// The page of a running Vervet, in a real browser. The environment has its address, VERVET_PAGE, and when it was
// started, VERVET_STARTED (unix seconds).
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { accessibilityFaults, drawn, launch, open } from './chromium.mjs'

const address = process.env.VERVET_PAGE
assert.ok(address, 'VERVET_PAGE is not set')
/** From the process' start to live charts. */
const PROMISE_S = 60
const PATIENCE = { timeout: 60_000 }

let browser
before(async () => (browser = await launch()))
after(() => browser.close())

async function visit(hash, body, options) {
  const { page, faults, close } = await open(browser, address + hash, options)
  try {
    await body(page)
    assert.deepEqual(faults, [])
  } finally {
    await close()
  }
}

/** The name of the only instance that there is: this host. */
async function thisHost(page) {
  await page.locator('tbody tr').first().waitFor(PATIENCE)
  return page.locator('.instance-name').first().innerText()
}

test('within a minute of the start, all charts of this host are drawn, and live', () =>
  visit('#/', async (page) => {
    const name = await thisHost(page)
    await page.getByRole('link', { name, exact: true }).click()
    for (const panel of ['cpu', 'memory', 'load', 'filesystem', 'disk', 'network']) {
      await drawn(page, `#panel-${panel} canvas`, /#/, PATIENCE.timeout)
    }
    await page.locator('.stream.open').waitFor(PATIENCE)
    const age = page.locator('.facts time')
    const shown = await age.getAttribute('datetime')
    await page.waitForFunction(
      (before) => document.querySelector('.facts time').dateTime !== before,
      shown,
      PATIENCE,
    )
    await page.locator('.headline', { hasText: 'busy' }).waitFor(PATIENCE)
    assert.ok(Date.now() / 1000 - Number(process.env.VERVET_STARTED) < PROMISE_S)
  }))

test('this host is up, fresh, and its figures are there', () =>
  visit('#/', async (page) => {
    await thisHost(page)
    const row = page.locator('tbody tr').first()
    await row.locator('.state.good', { hasText: 'up' }).waitFor(PATIENCE)
    await row.locator('[data-title="Last sample"]', { hasText: /^(now|\d+ s)$/ }).waitFor(PATIENCE)
    await row.locator('[data-title=Memory]', { hasText: /\d %/ }).waitFor(PATIENCE)
    await row.locator('[data-title=CPU]', { hasText: /\d %/ }).waitFor(PATIENCE)
    assert.match(await row.locator('[data-title=Load]').innerText(), /^\d/)
    assert.equal(await row.locator('[data-title=Missing]').innerText(), '0')
    await page.locator('.stream.open').waitFor(PATIENCE)
  }))

test('every sample that was generated is accounted for', () =>
  visit('#/', async (page) => {
    await page.getByText('Every sample is accounted for').waitFor(PATIENCE)
    const terms = await page.locator('.term dd').allInnerTexts()
    const [generated, stored, dropped, inFlight] = terms.map((text) => Number(text.replaceAll(',', '')))
    assert.ok(generated > 0)
    assert.equal(generated, stored + dropped + inFlight)
  }))

test('each range of time has an answer', () =>
  visit('#/', async (page) => {
    const name = await thisHost(page)
    for (const range of ['15m', '1h', '6h', '24h']) {
      await page.goto(`${address}#/instance/${encodeURIComponent(name)}?range=${range}`)
      await page.locator('.segments [aria-current]', { hasText: range }).waitFor()
      await page.locator('#panel-load figcaption').waitFor()
      await page.waitForFunction(() => document.querySelector('.panel[aria-busy=true], .failure') === null)
    }
  }))

test('the built-in rules are listed with their states', () =>
  visit('#/alerts', async (page) => {
    const rules = page.getByRole('table', { name: 'Rules' })
    await rules.getByRole('row').nth(4).waitFor(PATIENCE)
    await rules.locator('.state').first().waitFor()
    await page.getByText('Latest transitions').waitFor()
    await page.waitForFunction(() => document.querySelector('.failure') === null)
  }))

test('the inbox answers', () =>
  visit('#/inbox', async (page) => {
    await page.waitForFunction(() => document.querySelector('.loading') === null)
    await page.locator('.messages, .empty').first().waitFor()
    await page.waitForFunction(() => document.querySelector('.failure') === null)
  }))

for (const [theme, width] of [
  ['dark', 1280],
  ['light', 360],
]) {
  test(`every view is accessible and fits, ${theme} and ${width} pixels wide`, () =>
    visit(
      '#/',
      async (page) => {
        const name = await thisHost(page)
        for (const hash of ['#/', `#/instance/${encodeURIComponent(name)}`, '#/alerts', '#/inbox']) {
          await page.goto(address + hash)
          await page.waitForFunction(() => document.querySelector('.loading') === null)
          assert.deepEqual(await accessibilityFaults(page), [], hash)
          const over = await page.evaluate(
            () => document.documentElement.scrollWidth - document.documentElement.clientWidth,
          )
          assert.ok(over <= 0, `${hash} is ${over} pixels too wide`)
        }
      },
      { theme, width },
    ))
}
