/** Light or dark: the system's choice, or the one that was made here, which is remembered. */
import { useSyncExternalStore } from './external.ts'

export type Theme = 'light' | 'dark'

const STORED = 'theme'
const systemDark = matchMedia('(prefers-color-scheme: dark)')
const listeners = new Set<() => void>()

function current(): Theme {
  const chosen = document.documentElement.dataset.theme
  if (chosen === 'light' || chosen === 'dark') return chosen
  return systemDark.matches ? 'dark' : 'light'
}

function listen(changed: () => void): () => void {
  listeners.add(changed)
  systemDark.addEventListener('change', changed)
  return () => {
    listeners.delete(changed)
    systemDark.removeEventListener('change', changed)
  }
}

export function useTheme(): Theme {
  return useSyncExternalStore(listen, current)
}

/** Back to the system's choice where that is the same, so that the page follows it again. */
export function toggleTheme(): void {
  const theme: Theme = current() === 'dark' ? 'light' : 'dark'
  const system: Theme = systemDark.matches ? 'dark' : 'light'
  if (theme === system) delete document.documentElement.dataset.theme
  else document.documentElement.dataset.theme = theme
  try {
    if (theme === system) localStorage.removeItem(STORED)
    else localStorage.setItem(STORED, theme)
  } catch (error) {
    console.info('the theme is not remembered: this browser keeps no data of this page', error)
  }
  for (const changed of listeners) changed()
}
