// Runs before the first paint, so that a remembered choice never flashes in the other theme.
// A blocked localStorage throws: the system's preference then stands.
try {
  const theme = localStorage.getItem('theme')
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme
} catch {
  delete document.documentElement.dataset.theme
}
