// Debian's Chromium under playwright-core, strict: a dialog, an error on the console, a violation of the page's
// policy or a request to another host fails the test that it happens in.
import { createRequire } from 'node:module'

// The packages are the page's own; a module outside of web/ finds them only so.
const require = createRequire(new URL('../../web/package.json', import.meta.url))
const { chromium } = require('playwright-core')
const { AxeBuilder } = require('@axe-core/playwright')

const FLAGS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
]

/**
 * Chromium fails what is under way when the machine gets or loses an interface, as it does whenever a container starts or
 * ends beside the tests. The page asks again; that is no fault of its.
 */
const NETWORK_CHANGED = /ERR_NETWORK_CHANGED/

/** A browser with a fresh profile, closed with everything in it by `close()`. */
export function launch() {
  return chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: FLAGS })
}

/** A page at the address and the list of what went wrong on it; `allowed` are patterns of console errors that the test causes. */
export async function open(
  browser,
  address,
  { theme = 'light', width = 1280, height = 900, allowed = [] } = {},
) {
  const context = await browser.newContext({
    viewport: { width, height },
    colorScheme: theme,
    reducedMotion: 'reduce',
    timezoneId: 'Europe/Berlin',
  })
  const page = await context.newPage()
  const faults = []
  page.on('dialog', (dialog) => {
    faults.push(`dialog: ${dialog.message()}`)
    void dialog.dismiss()
  })
  page.on('console', (message) => {
    const known = [NETWORK_CHANGED, ...allowed].some((pattern) => pattern.test(message.text()))
    if (['error', 'warning'].includes(message.type()) && !known) faults.push(`console: ${message.text()}`)
  })
  page.on('pageerror', (error) => faults.push(`error: ${error}`))
  page.on('request', (request) => {
    if (new URL(request.url()).origin !== new URL(address).origin) faults.push(`request: ${request.url()}`)
  })
  await page.addInitScript(() => {
    addEventListener('securitypolicyviolation', (event) =>
      console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`),
    )
  })
  await page.goto(address)
  return { page, faults, close: () => context.close() }
}

/** What axe finds, in words. */
export async function accessibilityFaults(page) {
  const { violations } = await new AxeBuilder({ page }).analyze()
  return violations.flatMap(({ id, nodes }) =>
    nodes.map(({ target, failureSummary }) => `${id}: ${target}: ${failureSummary}`),
  )
}

/** Waits until a canvas is coloured like this; see below. */
export async function drawn(page, selector, pattern = /#/, timeout_ms = 30_000) {
  const deadline = Date.now() + timeout_ms
  await page.locator(selector).waitFor({ timeout: timeout_ms })
  let columns
  do {
    columns = await colouredColumns(page, selector)
    if (pattern.test(columns)) return
    await page.evaluate(() => new Promise(requestAnimationFrame))
  } while (Date.now() < deadline)
  throw new Error(`${selector} is not drawn like ${pattern}: ${columns}`)
}

/** Which pixel columns of a canvas hold colour (axes and grid are grey): `#` for each that does, `.` for the others. */
async function colouredColumns(page, selector) {
  return page.locator(selector).evaluate((canvas) => {
    const { width, height } = canvas
    // Read from a copy: Chromium warns when a canvas for drawing is read often.
    const copy = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true })
    copy.drawImage(canvas, 0, 0)
    const { data } = copy.getImageData(0, 0, width, height)
    const coloured = (x, y) => {
      const at = (y * width + x) * 4
      const [red, green, blue, alpha] = data.subarray(at, at + 4)
      return alpha > 40 && Math.max(red, green, blue) - Math.min(red, green, blue) > 30
    }
    const rows = Array.from({ length: height }, (_, y) => y)
    return Array.from({ length: width }, (_, x) => (rows.some((y) => coloured(x, y)) ? '#' : '.')).join('')
  })
}
