# shellcheck shell=bash
# What the programs of dev/ share: how they speak, ask, and find the machine's packages.

cache=${PI_DOCKER_DEV_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pi-docker-dev}

say() { printf '%s\n' "$*" >&2; }

die() {
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2
  exit 1
}

# confirm LINE...: says what will be done and asks, unless --yes or CI=true already answered.
confirm() {
  printf 'will %s\n' "$@" >&2
  [ "${assume_yes:-}" = 1 ] || [ "${CI:-}" = true ] && return
  [ -t 0 ] || die "nobody here to answer [y/N]" "run it again with --yes"
  local answer
  read -r -p 'go on? [y/N] ' answer
  case $answer in [yY] | [yY][eE][sS]) ;; *) die "stopped" ;; esac
}

# The bundle of a machine whose TLS needs a CA of its own; empty on any other.
machine_ca() {
  local bundle=${SSL_CERT_FILE:-${NODE_EXTRA_CA_CERTS:-}}
  if [ -n "$bundle" ] && [ -r "$bundle" ]; then printf '%s\n' "$bundle"; fi
}

is_debian_root() {
  [ "$(id -u)" = 0 ] && command -v apt-get dpkg >/dev/null &&
    (. /etc/os-release && [ "$ID" = debian ])
}

# debian_sources SUITE [ARCHIVE...]: sources lines for another Debian release, from the mirrors this machine
# already uses. ARCHIVE is "", "-updates" or "-security".
debian_sources() {
  local suite=$1 own archive uri
  shift
  own=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
  for archive in "${@:-}"; do
    # shellcheck disable=SC2016 # the names are for apt to fill in
    uri=$(apt-get indextargets --no-release-info --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
      awk -v want="$own$archive" '$1 == want && $2 == "main" { print $3; exit }')
    if [ -n "$uri" ]; then
      printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s%s main\n' "$uri" "$suite" "$archive"
    elif [ -z "$archive" ]; then
      die "apt has no source for $own main" "check /etc/apt/sources.list and /etc/apt/sources.list.d"
    fi
  done
}

# apt_install PACKAGE...: from the machine's own release.
apt_install() {
  local quiet=(-qq -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0)
  { apt-get "${quiet[@]}" update &&
    DEBIAN_FRONTEND=noninteractive apt-get "${quiet[@]}" install -y --no-install-recommends "$@"; } >"$cache/apt-install.log" 2>&1 ||
    die "cannot install $*: $(tail -n 1 "$cache/apt-install.log")" "the whole story is in $cache/apt-install.log"
}
