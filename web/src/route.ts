/** Which view the address names: `#/`, `#/instance/<name>?range=1h`, `#/alerts`, `#/inbox`. */

export type View = 'instances' | 'instance' | 'alerts' | 'inbox' | 'unknown'

export interface Route {
  view: View
  /** The instance's name; empty on other views. */
  name: string
  range: string | undefined
}

export function parseRoute(hash: string): Route {
  const [path = '', query = ''] = hash.replace(/^#?\/?/, '').split('?', 2)
  const [view = '', ...rest] = path.split('/')
  const range = new URLSearchParams(query).get('range') ?? undefined
  const plain = rest.join('/') === ''
  if (view === '' && plain) return { view: 'instances', name: '', range }
  if (view === 'instance' && !plain) return { view, name: decoded(rest.join('/')), range }
  if ((view === 'alerts' || view === 'inbox') && plain) return { view, name: '', range }
  return { view: 'unknown', name: '', range }
}

/** Text that is no valid percent-encoding stands for itself. */
function decoded(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}

export function instanceLink(name: string, range?: string): string {
  const query = range === undefined ? '' : `?range=${range}`
  return `#/instance/${encodeURIComponent(name)}${query}`
}
