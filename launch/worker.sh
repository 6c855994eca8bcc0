#!/usr/bin/env bash
# What the launch scripts call on each host. A job is one command with its log,
# process id and exit code in ~/poison_jax/jobs/JOB; it outlives the session
# that started it.
#
#   worker.sh setup                 makes .venv; brings Python where needed
#   worker.sh start JOB LOGS COMMAND...   starts it, once; LOGS is a folder in a
#                                   bucket that gets the log at the end, or -
#   worker.sh state JOB             HOST and: none, running, exit CODE or lost
#   worker.sh log JOB [--follow]
#   worker.sh stop JOB              SIGTERM: training saves and exits 75
#   worker.sh part SLICE SLICES     I/N for this host of a TPU slice
#   worker.sh contain COMMAND...    runs it here, in a container of xpk's
#   worker.sh task FOLDER COMMAND...   runs it here, as a task of SLURM's: its
#                                   exit code goes to FOLDER/NUMBER
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
home=${POISON_JAX_HOME:-$HOME/poison_jax}
dry_run=''
. "$here/launch/steps.sh"
uv_version=0.13.8
metadata=http://metadata.google.internal/computeMetadata/v1/instance/attributes

# One that can make a virtual environment; uv's own where there is none.
find_python() {
  local candidate
  for candidate in python3.12 python3.13 python3.11; do
    if "$candidate" -c 'import ensurepip' >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  if [ ! -x "$home/uv/uv" ]; then
    curl --fail --silent --show-error --location --retry 5 \
      "https://astral.sh/uv/$uv_version/install.sh" |
      UV_INSTALL_DIR=$home/uv UV_NO_MODIFY_PATH=1 sh >&2
  fi
  "$home/uv/uv" python install --quiet 3.12 >&2
  "$home/uv/uv" python find --managed-python 3.12
}

# All commits share one environment, which environment.sh keeps up to date.
setup() {
  mkdir -p "$home/venv"
  [ -e "$here/.venv" ] || ln -s "$home/venv" "$here/.venv"
  if [ ! -x "$here/.venv/bin/python" ]; then
    PYTHON=$(find_python)
    export PYTHON
  fi
  bash "$here/launch/environment.sh" requirements-tpu.txt
}

is_running() { # FOLDER
  local pid
  pid=$(cat "$1/pid" 2>/dev/null) || return 1
  # After a reboot the number may be another process's.
  tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "worker.sh execute $1 "
}

state() { # FOLDER
  if [ ! -d "$1" ]; then
    echo none
  elif is_running "$1"; then
    echo running
  elif [ -s "$1/exit" ]; then
    echo "exit $(cat "$1/exit")"
  else
    echo lost # The host went down, or the kernel killed all of it.
  fi
}

start() { # FOLDER LOGS COMMAND...
  if is_running "$1"; then
    echo "$HOSTNAME running already"
    return
  fi
  mkdir -p "$1"
  rm -f "$1/exit"
  setsid nohup bash "$here/launch/worker.sh" execute "$@" \
    >/dev/null 2>&1 </dev/null &
  echo $! >"$1/pid"
  # Until it is seen to run, or has ended: a look right after would miss it.
  for _ in 1 2 3 4 5; do
    ! is_running "$1" && [ ! -e "$1/exit" ] || break
    sleep 1
  done
  echo "$HOSTNAME started"
}

# The job itself; `start` puts it into a session of its own.
execute() { # FOLDER LOGS COMMAND...
  local folder=$1 logs=$2
  shift 2
  cd "$here"
  PATH=$here/.venv/bin:$PATH
  forward "$@" >>"$folder/log" 2>&1
  if [ "$logs" != - ]; then
    gcloud storage cp "$folder/log" "$logs/$HOSTNAME.log" >/dev/null 2>&1 || true
  fi
  echo "$code" >"$folder/exit.new"
  mv "$folder/exit.new" "$folder/exit"
}

stop() { # FOLDER
  is_running "$1" && kill -TERM "$(cat "$1/pid")"
  while is_running "$1"; do sleep 1; done
  echo "$HOSTNAME $(state "$1")"
}

# xpk restarts a job set after 42 and 127 to 255 too: those that the command
# itself ends with become 1, so that only 75 and a lost host start it again.
contain() { # COMMAND...
  forward "$@"
  if [ "$code" = 42 ] || [ "$code" -ge 127 ]; then
    echo "error: exit code $code: not started again" >&2
    code=1
  fi
  exit "$code"
}

# srun tells one exit code for all tasks; which ones ended how, these files say.
task() { # FOLDER COMMAND...
  local folder=$1
  shift
  forward "$@"
  echo "$code" >"$folder/$SLURM_PROCID"
  exit "$code"
}

attribute() { # NAME
  curl --fail --silent --show-error --header 'Metadata-Flavor: Google' \
    "$metadata/$1"
}

part() { # SLICE SLICES
  local worker workers
  worker=$(attribute agent-worker-number)
  workers=$(attribute worker-network-endpoints | tr ',' '\n' | grep -c .)
  echo "$(($1 * workers + worker))/$(($2 * workers))"
}

verb=${1:-}
shift || true
case $verb in
  setup | execute | part | contain | task) "$verb" "$@" ;;
  start) job=$1 && shift && start "$home/jobs/$job" "$@" ;;
  stop) stop "$home/jobs/$1" ;;
  state) echo "$HOSTNAME $(state "$home/jobs/$1")" ;;
  log)
    # Waits for a log that isn't there yet.
    exec tail -n 100 ${2:+"--follow=name" "--retry"} "$home/jobs/$1/log"
    ;;
  *)
    echo "error: unknown '$verb'; see the head of launch/worker.sh" >&2
    exit 2
    ;;
esac
