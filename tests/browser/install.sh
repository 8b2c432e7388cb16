#!/usr/bin/env bash
# Chromium for the browser tests: Debian's headless shell (what Playwright runs too; half the work of the whole browser), else the Chromium on this machine,
# else Debian's, else Playwright's own build.
set -e
has() { command -v "$1" >/dev/null; }
has chromium-headless-shell && exit 0
if has apt-get && [ "$(id -u)" = 0 ]; then
  timeout 300 sh -c "apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium-headless-shell" >/dev/null && exit 0
fi
for name in chromium chromium-browser google-chrome; do
  has "$name" && exit 0
done
if has apt-get && [ "$(id -u)" = 0 ]; then
  apt-get install -y -qq --no-install-recommends chromium >/dev/null && exit 0
fi
"$1" -m playwright install chromium || {
  echo "No Chromium could be installed. Install one (Debian: apt-get install chromium) and run make test again." >&2
  exit 1
}
