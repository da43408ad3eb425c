#!/usr/bin/env bash
# Takes the device agent of sfl off this machine. Data, keys and settings stay, unless --purge is given.
set -euo pipefail

purge=no
case ${1:-} in
  '') ;;
  --purge) purge=yes ;;
  *) echo "Usage: sudo uninstall.sh [--purge]   (--purge: data, keys, settings and the user too)" >&2; exit 2 ;;
esac
[ "$(id -u)" = 0 ] || { echo "error: run it with sudo" >&2; exit 2; }

unit=/etc/systemd/system/sfl-device.service
if [ -d /run/systemd/system ] && [ -f $unit ]; then
  systemctl disable --quiet --now sfl-device
fi
rm -f $unit
rm -rf $unit.d /opt/sfl /var/cache/sfl
[ ! -d /run/systemd/system ] || systemctl daemon-reload
if [ $purge = yes ]; then
  rm -rf /etc/sfl /var/lib/sfl
  getent passwd sfl >/dev/null && userdel sfl
  echo "gone, with its data, keys and settings"
else
  echo "gone; /etc/sfl and /var/lib/sfl stay (--purge takes them too)"
fi
