// The build goes where the api serves it from, and into the wheel with it.
import { defineConfig } from 'vite'

export default defineConfig({
  build: {
    outDir: '../services/api/static',
    emptyOutDir: true,
    // The page's policy is `default-src 'self'`: nothing may become a data: address.
    assetsInlineLimit: 0,
    // The first browsers with light-dark(), from spring 2024 on; earlier ones lack AbortSignal.any as well.
    target: ['chrome123', 'firefox124', 'safari17.5'],
  },
  // `npm run dev` takes data from a Vervet that runs on this machine.
  server: {
    host: '127.0.0.1',
    proxy: { '/api': 'http://127.0.0.1:8420', '/v1': 'http://127.0.0.1:8420' },
  },
})
