#!/usr/bin/env bash
# Installs the device agent of sfl on Raspberry Pi OS, Debian or Ubuntu, as a service of its own user.
# Run it again to update; what is up to date is left alone. docs/boards.md has the whole story.
set -euo pipefail

usage() {
  cat <<'USAGE'
Usage: sudo device_agent/board/install.sh --name NAME --edge HOST:PORT [options]

  --name NAME          the device's name, as in the run's [[devices]] and in its certificate
  --edge HOST:PORT     where its edge listens
  --certs DIR          folder with ca.pem, NAME.pem and NAME.key, from `sfl ca issue`
  --insecure           without certificates: for a network that is all your own
  --torch VERSION      another torch than 2.10.0 (arm64) or the pinned one (elsewhere)
  --torch-index URL    where to take torch from, such as PyTorch's own index of CPU wheels
  --python PROGRAM     Python 3.11 or newer (default: python3)
  --jetson             let the service reach the GPU, for work of your own in its venv
  --no-compiler        do not install gcc; the codec then runs on torch, more slowly
  --no-start           do not start the service

An existing /etc/sfl/device.toml stays as it is, but that --certs gives it [device.tls] where it has
none; name and edge are needed for a new one only.
USAGE
}

name='' edge='' certs='' torch='' index='' python=python3
insecure=no jetson=no compiler=yes start=yes
while [ $# -gt 0 ]; do
  case $1 in
    --name) name=${2:?--name NAME}; shift ;;
    --edge) edge=${2:?--edge HOST:PORT}; shift ;;
    --certs) certs=${2:?--certs DIR}; shift ;;
    --torch) torch=${2:?--torch VERSION}; shift ;;
    --torch-index) index=${2:?--torch-index URL}; shift ;;
    --python) python=${2:?--python PROGRAM}; shift ;;
    --insecure) insecure=yes ;;
    --jetson) jetson=yes ;;
    --no-compiler) compiler=no ;;
    --no-start) start=no ;;
    -h | --help) usage; exit 0 ;;
    *) echo "error: unknown option $1" >&2; usage >&2; exit 2 ;;
  esac
  shift
done

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source=$(cd "$here/../.." && pwd)
prefix=/opt/sfl config=/etc/sfl state=/var/lib/sfl unit=/etc/systemd/system/sfl-device.service
changed=no

fail() { echo "error: $1" >&2; exit 2; }
say() { changed=yes; echo "$1"; }

check() {
  [ "$(id -u)" = 0 ] || fail "run it with sudo: it makes a user, a service and $prefix"
  command -v apt-get >/dev/null || fail "no apt-get: this is for Raspberry Pi OS, Debian and Ubuntu"
  [ -f "$source/constraints.txt" ] || fail "no constraints.txt in $source: run it from a checkout"
  if [ ! -f $config/device.toml ]; then
    [[ $name =~ ^[A-Za-z0-9][A-Za-z0-9_.-]*$ ]] || fail "--name '$name': letters, digits, . _ -"
    [[ $edge =~ ^[][A-Za-z0-9._:-]+:[0-9]+$ ]] || fail "--edge '$edge': write HOST:PORT"
  fi
  local is
  is=$(sed -nE '/^[[:space:]]*name[[:space:]]*=/{s/.*=[[:space:]]*"([^"]*)".*/\1/p;q}' $config/device.toml 2>/dev/null || true)
  [ -z "$name" ] || [ "${is:-$name}" = "$name" ] || fail "--name '$name': $config/device.toml is of '$is'"
  if [ -n "$certs" ]; then
    [ -n "$name" ] || fail "--certs: give --name too, whose certificate it is"
    for file in ca.pem "$name.pem" "$name.key"; do
      [ -f "$certs/$file" ] || fail "--certs '$certs': there is no $file; issue it with sfl ca"
    done
    [ $insecure = no ] || fail "--insecure: leave it out, there are certificates"
    if has_tls && ! grep -q "\"$config/tls/$name\.pem\"" $config/device.toml; then
      fail "--certs: $config/device.toml has a [device.tls] that does not name $config/tls/$name.pem; correct it"
    fi
  elif [ $insecure = yes ] && has_tls; then
    fail "--insecure: $config/device.toml has certificates; take its [device.tls] out first"
  fi
}

has_tls() { grep -Eqs '^[[:space:]]*(\[device\.tls\]|(device\.)?tls[[:space:].=])' $config/device.toml; }

# A line of packages that are missing; gcc builds the codec's kernel.
packages() {
  local wanted=(ca-certificates libgomp1) package
  [ "$python" != python3 ] || wanted+=(python3 python3-venv)
  [ $compiler = no ] || wanted+=(gcc libc6-dev)
  for package in "${wanted[@]}"; do
    [ "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null)" = 'install ok installed' ] || echo "$package"
  done
}

install_packages() {
  local missing
  mapfile -t missing < <(packages)
  if [ ${#missing[@]} -gt 0 ]; then
    say "installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  fi
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "--python $python: $("$python" --version 2>&1) is too old, sfl needs Python 3.11"
}

make_user() {
  if ! getent passwd sfl >/dev/null; then
    say "making the user sfl"
    useradd --system --user-group --home-dir $state --no-create-home --shell /usr/sbin/nologin sfl
  fi
  # vcgencmd asks the firmware through a device of this group.
  if getent group video >/dev/null && ! id -nG sfl | grep -qw video; then
    say "adding sfl to the group video"
    usermod -aG video sfl
  fi
}

# Folders with their owner and mode; `install -d` alone would touch what is there.
folder() {
  local path=$1 owner=$2 mode=$3
  if [ "$(stat -c '%U:%G %a' "$path" 2>/dev/null)" != "$owner $mode" ]; then
    say "making $path"
    install -d -o "${owner%:*}" -g "${owner#*:}" -m "$mode" "$path"
  fi
}

# A file with its owner and mode, only where it differs.
file() {
  local from=$1 to=$2 owner=$3 mode=$4
  if ! cmp -s "$from" "$to" || [ "$(stat -c '%U:%G %a' "$to")" != "$owner $mode" ]; then
    say "writing $to"
    install -o "${owner%:*}" -g "${owner#*:}" -m "$mode" "$from" "$to"
  fi
}

# Torch 2.10.0 is the newest whose arm64 wheel is for the CPU alone; later ones ask for CUDA.
torch_version() {
  if [ -n "$torch" ]; then echo "$torch"
  elif [ "$(uname -m)" = aarch64 ] && [ -z "$index" ]; then echo 2.10.0
  else sed -n 's/^torch==//p' "$source/constraints.txt"
  fi
}

sources() { echo pyproject.toml README.md LICENSE constraints.txt sfl device_agent edge_server cloud_aggregator; }

# What was installed, as one number: the sources, the versions, the interpreter.
fingerprint() {
  { cd "$source"
    # shellcheck disable=SC2046
    find $(sources) -type f \( -name '*.py' -o -name '*.pyi' -o -name '*.c' -o -name '*.toml' -o -name '*.txt' \) -print0 |
      LC_ALL=C sort -z | xargs -0 sha256sum
    interpreter
    torch_version; echo "$index" "$compiler"; } | sha256sum | cut -d' ' -f1
}

# Version and place of the Python that a venv is made of, as its pyvenv.cfg has them.
interpreter() {
  "$python" -c 'import os, sys
print("%d.%d" % sys.version_info[:2], os.path.realpath(sys.executable))'
}

# A venv keeps its packages in a folder named after Python's version: of another it is of no use.
make_venv() {
  local made_of
  made_of=$(sed -nE 's/^version = ([0-9]+\.[0-9]+).*/\1/p; s/^executable = //p' $prefix/venv/pyvenv.cfg 2>/dev/null |
    paste -sd' ' || true)
  if [ "$made_of" != "$(interpreter)" ] || ! $prefix/venv/bin/python -c '' 2>/dev/null; then
    [ ! -e $prefix/venv ] || say "making $prefix/venv anew, of $(interpreter)"
    rm -rf $prefix/venv
    "$python" -m venv $prefix/venv
  fi
}

install_sfl() {
  local wanted pip
  wanted=$(fingerprint)
  [ "$(cat $prefix/installed 2>/dev/null)" != "$wanted" ] || return 0
  say "installing sfl with torch $(torch_version) into $prefix/venv: some minutes, and 1 GB of disk"
  rm -f $prefix/installed
  make_venv
  pip="$prefix/venv/bin/python -m pip --disable-pip-version-check --no-cache-dir --quiet"
  grep -v '^torch==' "$source/constraints.txt" >"$work/constraints.txt"
  echo "torch==$(torch_version)" >>"$work/constraints.txt"
  # Torch first, from its own index where one is given: a plain requirement may bring gigabytes of CUDA.
  # Such an index may lack the pinned versions of what torch needs; the next line brings those.
  $pip install -c "$work/constraints.txt" ${index:+--no-deps --index-url "$index"} "torch==$(torch_version)"
  $pip install -c "$work/constraints.txt" --only-binary=:all: -r "$here/requirements.txt"
  # Built in a copy, so that the checkout stays as it is; --no-deps, since a device needs fewer.
  # shellcheck disable=SC2046
  (cd "$source" && tar -c --exclude='*.so' --exclude=__pycache__ $(sources)) | tar -x -C "$work"
  $pip install --no-deps --force-reinstall "$work"
  $prefix/venv/bin/python -c 'import device_agent.agent'
  echo "$wanted" >$prefix/installed
}

write_config() {
  [ -f $config/device.toml ] || new_config
  if [ -n "$certs" ]; then
    file "$certs/ca.pem" $config/tls/ca.pem root:sfl 640
    file "$certs/$name.pem" "$config/tls/$name.pem" root:sfl 640
    file "$certs/$name.key" "$config/tls/$name.key" sfl:sfl 600
    has_tls || add_tls
  fi
  write_options
}

new_config() {
  sed -e "s/@NAME@/$name/" -e "s|@EDGE@|$edge|" "$here/device.toml" >"$work/device.toml"
  file "$work/device.toml" $config/device.toml root:sfl 640
}

# A table of its own may stand at the end of the file, whatever is in it.
add_tls() {
  { cat $config/device.toml
    printf '\n[device.tls]\nca = "%s/tls/ca.pem"\ncert = "%s/tls/%s.pem"\nkey = "%s/tls/%s.key"\n' \
      $config $config "$name" $config "$name"; } >"$work/device.toml"
  file "$work/device.toml" $config/device.toml root:sfl 640
}

# SFL_OPTIONS with --insecure or without, as was asked for; the other options stay.
write_options() {
  local had='' options
  [ ! -f $config/device.env ] || had=$(sed -nE 's/^SFL_OPTIONS="?([^"]*)"?$/\1/p' $config/device.env)
  options=$had
  if [ $insecure = yes ]; then
    [[ " $options " == *' --insecure '* ]] || options="--insecure${options:+ $options}"
  elif [ -n "$certs" ]; then
    options=$(sed -E 's/(^| )--insecure( |$)/ /; s/^ +| +$//g' <<<"$options")
  fi
  [ ! -f $config/device.env ] || [ "$options" != "$had" ] || return 0
  { grep -sv '^SFL_OPTIONS=' $config/device.env || true
    echo "SFL_OPTIONS=$options"; } >"$work/device.env"
  file "$work/device.env" $config/device.env root:sfl 640
}

# What the service would end with, exit code 2: an edge elsewhere, and nothing said about the link.
tell_what_is_missing() {
  local to
  to=$(sed -nE 's/^[[:space:]]*edge[[:space:]]*=[[:space:]]*"([^"]*)".*/\1/p' $config/device.toml)
  [[ ! $to =~ ^(127\.|localhost:|\[::1\]:) ]] || return 0
  has_tls || grep -qs -e --insecure $config/device.env ||
    echo "missing: certificates. The device will not dial $to without: run this again with --certs DIR," \
      "or with --insecure on a network that is all your own" >&2
}

install_service() {
  local before=$changed
  changed=no
  file "$here/sfl-device.service" $unit root:root 644
  if [ $jetson = yes ]; then
    folder $unit.d root:root 755
    file "$here/jetson.conf" $unit.d/jetson.conf root:root 644
  fi
  if [ ! -d /run/systemd/system ]; then
    [ $changed = no ] || echo "systemd does not run here: nothing is started"
  else
    [ $changed = no ] || systemctl daemon-reload
    systemctl is-enabled --quiet sfl-device || { say "enabling the service"; systemctl enable --quiet sfl-device; }
    if [ $start = yes ] && { [ $before$changed != nono ] || ! systemctl is-active --quiet sfl-device; }; then
      say "starting the service"
      systemctl restart --no-block sfl-device
    fi
  fi
  [ $before = no ] || changed=yes
}

# Sourced, it only defines what is above: tests/node/test_boards.py.
[ "${BASH_SOURCE[0]}" = "$0" ] || return 0

check
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
install_packages
make_user
folder $prefix root:root 755
folder $prefix/share root:root 755
folder $config root:sfl 750
folder $config/tls sfl:sfl 700
folder $state sfl:sfl 700
folder /var/cache/sfl sfl:sfl 700
install_sfl
file "$source/docs/boards.md" $prefix/share/boards.md root:root 644
write_config
install_service
if [ $changed = no ]; then
  echo "everything is up to date"
else
  echo "done: put the data at $state/train.jsonl (owner sfl), then: systemctl status sfl-device"
fi
tell_what_is_missing
