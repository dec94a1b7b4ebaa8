/** A value that lives outside of components, read anew whenever it says that it changed. */
import { useEffect, useState } from 'preact/hooks'

export function useSyncExternalStore<T>(listen: (changed: () => void) => () => void, read: () => T): T {
  const [value, setValue] = useState(read)
  useEffect(() => {
    const changed = () => setValue(read)
    changed()
    return listen(changed)
  }, [listen, read])
  return value
}
