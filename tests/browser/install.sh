#!/usr/bin/env bash
# Chromium for the browser tests: the one on this machine, else Debian's, else Playwright's own build.
set -e
for name in chromium chromium-browser google-chrome; do
  command -v "$name" >/dev/null && exit 0
done
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null && exit 0
fi
"$1" -m playwright install chromium || {
  echo "No Chromium could be installed. Install one (Debian: apt-get install chromium) and run make test again." >&2
  exit 1
}
