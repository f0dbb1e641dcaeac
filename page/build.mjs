// Builds the page into dist/. No package of others becomes a part of it.
import { readdirSync, readFileSync, rmSync, copyFileSync } from 'node:fs';
import { build } from 'esbuild';

/** Licenses of the packages that build and test the page. */
const ALLOWED = ['MIT', 'Apache-2.0', 'ISC', 'BSD-2-Clause', 'BSD-3-Clause', 'MPL-2.0'];

const { packages } = JSON.parse(readFileSync('package-lock.json', 'utf8'));
for (const [path, { license, dev, devOptional, optional }] of Object.entries(packages)) {
  if (!ALLOWED.includes(license)) throw new Error(`${path}: the license ${license} is not allowed, see build.mjs`);
  const isTool = path === '' || dev || devOptional || optional;
  if (!isTool) throw new Error(`${path} would be shipped: add its license text to the page, then allow it here`);
}

for (const name of readdirSync('dist')) if (!name.startsWith('.')) rmSync(`dist/${name}`);
await build({
  entryPoints: ['src/app.ts', 'src/app.css'],
  outdir: 'dist',
  bundle: true,
  minify: true,
  target: ['es2022', 'chrome123', 'firefox120', 'safari17.5'],
  legalComments: 'none',
});
for (const name of ['index.html', 'icon.svg']) copyFileSync(name, `dist/${name}`);
