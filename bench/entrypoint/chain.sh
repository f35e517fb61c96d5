#!/bin/bash
# What this program replaces: a shell script under docker-init, with gosu, and node for the wipe. Written for the bench after the
# usual shape of such a script: defaults, credentials, hand over, drop, a trap that wipes.
set -e
if [ ! -f /workspace/.pi/AGENTS.md ]; then
  mkdir -p /workspace/.pi
  cp /defaults/AGENTS.md /workspace/.pi/AGENTS.md
fi
if [ ! -d /workspace/.pi/extensions ]; then
  cp -r /defaults/extensions /workspace/.pi/extensions
fi
export HOME=/home/pi
if [ -n "$GH_TOKEN" ]; then
  echo "https://x-access-token:$GH_TOKEN@github.com" >"$HOME/.git-credentials"
  chmod 600 "$HOME/.git-credentials"
  git config --global credential.helper store
  git config --global safe.directory '*'
  git config --global url.https://github.com/.insteadOf git@github.com:
  chown "$PI_DOCKER_UID:$PI_DOCKER_GID" "$HOME/.git-credentials" "$HOME/.gitconfig"
fi
chown "$PI_DOCKER_UID:$PI_DOCKER_GID" "$HOME"
wipe() {
  if [ -f /run/pi-docker/auth.json ]; then
    node -e 'require("fs").writeFileSync("/run/pi-docker/auth.json", "{}")'
  fi
}
trap 'wipe; exit 143' TERM HUP
trap wipe EXIT
gosu "$PI_DOCKER_UID:$PI_DOCKER_GID" bash -c '"$@"; exit $?' bash "$@" &
wait $!
