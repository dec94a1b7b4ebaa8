/** The way on in a list that was cut. */
export function More({ next, onMore }: { next: string | null; onMore: () => void }) {
  if (next === null) return null
  return (
    <button type="button" class="more" onClick={onMore}>
      Show more
    </button>
  )
}
