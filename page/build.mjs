// Builds the page into dist/. The packages in SHIPPED become a part of it, with their licenses.
import { readdirSync, readFileSync, rmSync, copyFileSync, writeFileSync } from 'node:fs';
import { build } from 'esbuild';

/** Licenses of the packages that build and test the page. */
const ALLOWED = ['MIT', 'Apache-2.0', 'ISC', 'BSD-2-Clause', 'BSD-3-Clause', 'MPL-2.0'];
/** Packages that become a part of the page. All of them have the MIT license, which asks only for its text. */
const SHIPPED = ['@xterm/addon-fit', '@xterm/xterm'];

const { packages } = JSON.parse(readFileSync('package-lock.json', 'utf8'));
for (const [path, { license, dev, devOptional, optional }] of Object.entries(packages)) {
  if (!ALLOWED.includes(license)) throw new Error(`${path}: the license ${license} is not allowed, see build.mjs`);
  const isTool = path === '' || dev || devOptional || optional;
  const name = path.replace('node_modules/', '');
  if (isTool) continue;
  if (!SHIPPED.includes(name)) throw new Error(`${path} would be shipped: see SHIPPED in build.mjs`);
  if (license !== 'MIT') throw new Error(`${path} would be shipped, and its license is ${license}`);
}
const licenses = SHIPPED.map((name) => {
  const { version } = JSON.parse(readFileSync(`node_modules/${name}/package.json`, 'utf8'));
  return `${name} ${version}\n\n${readFileSync(`node_modules/${name}/LICENSE`, 'utf8').trim()}\n`;
});

for (const name of readdirSync('dist')) if (!name.startsWith('.')) rmSync(`dist/${name}`);
await build({
  entryPoints: ['src/app.ts', 'src/app.css'],
  outdir: 'dist',
  bundle: true,
  // Terminals are a file of their own, which is read when the first one is opened.
  splitting: true,
  format: 'esm',
  chunkNames: '[name]-[hash]',
  minify: true,
  target: ['es2022', 'chrome123', 'firefox120', 'safari17.5'],
  legalComments: 'none',
});
writeFileSync('dist/licenses.txt', licenses.join('\n'));
for (const name of ['index.html', 'icon.svg']) copyFileSync(name, `dist/${name}`);
