# shellcheck shell=bash disable=SC2154  # The scripts that source it set them.
# What the launch scripts share. Each step is printed with --dry-run and
# executed without; both go through here. Sourced after `dry_run=`, with
# descriptor 3 open on standard output. For bash 3.2 and later.

fail() { # CODE MESSAGE...
  local code=$1
  shift
  echo "error: $*" >&2
  exit "$code"
}

# Prints words as one line that a shell reads back.
quoted() { # WORD...
  local word line='' quote="'\\''"
  for word in "$@"; do
    case $word in
      *[!A-Za-z0-9_@%+=:,./-]* | '') word="'${word//\'/$quote}'" ;;
    esac
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Executes a command that changes something, or prints it.
run() { # COMMAND...
  if [ -n "$dry_run" ]; then
    quoted "$@" >&3
  else
    "$@"
  fi
}

# Executes a command that asks for something; a dry run prints it and assumes
# the answer.
ask() { # ASSUMED COMMAND...
  local assumed=$1
  shift
  if [ -n "$dry_run" ]; then
    quoted "$@" >&3
    echo "$assumed"
  else
    "$@"
  fi
}

need() { # PROGRAM WHAT-TO-DO
  [ -n "$dry_run" ] || command -v "$1" >/dev/null 2>&1 ||
    fail 2 "$1 isn't on the PATH: $2"
}

say() { # WORD...
  [ -n "$dry_run" ] || echo "$*"
}

# Prints the commit that the hosts get: HEAD, which must be all there is.
checked_commit() {
  local commit changed
  commit=$(git rev-parse --short=12 HEAD 2>/dev/null) ||
    fail 2 "$PWD is no git checkout: the hosts get the code of a commit"
  changed=$(git status --porcelain --untracked-files=no | wc -l | tr -d ' ')
  if [ "$changed" != 0 ] && [ -z "$dry_run" ]; then
    fail 2 "$changed files differ from commit $commit, which is what the hosts" \
      "get: commit them, or put them aside with git stash"
  fi
  echo "$commit"
}

keep() { # TEXT URL
  run gcloud storage cp - "$2" <<<"$1" 2>"$tmp/error" ||
    fail 2 "$2 can't be written: $(problem)"
}

# Puts the code of a commit into the bucket, where it isn't there yet.
publish_code() { # COMMIT URL
  if [ -n "$dry_run" ]; then
    quoted gcloud storage ls "$2" >&3
    echo "git archive --format=tar.gz $1 | $(quoted gcloud storage cp - "$2")" >&3
  elif ! gcloud storage ls "$2" >/dev/null 2>&1; then
    git archive --format=tar.gz "$1" | gcloud storage cp - "$2" ||
      fail 2 "$2 can't be written: is there such a bucket, and may you write it?"
  fi
}

problem() { # The line of gcloud's error that says most.
  grep -E 'ERROR|rror:' "$tmp/error" | head -n 1 | cut -c 1-300 || true
  grep -qE 'ERROR|rror:' "$tmp/error" || tail -n 1 "$tmp/error" | cut -c 1-300
}

# A run keeps what it was asked for in the bucket, so that later commands need
# not be told, on any machine: the variables that `settings` names, in
# `$home/settings`. What the command line says goes before. Sets `kept` to what
# was read.
read_settings() {
  local key value
  kept=''
  [ -z "$dry_run" ] || return 0
  if ! gcloud storage cat "$home/settings" >"$tmp/settings" 2>"$tmp/error"; then
    grep -qiE 'matched no objects|not.found|404' "$tmp/error" && return
    fail 2 "$home/settings can't be read: $(problem)"
  fi
  while IFS='=' read -r key value; do
    case " $settings " in *" $key "*)
      case $key in cluster | zone | project) # Elsewhere, another one would be made.
        [ -z "${!key}" ] || [ "${!key}" = "$value" ] ||
          fail 2 "--$key=${!key}: $name is in $value ($home/settings); leave it" \
            "out, or give another --name (-- --workdir=gs://... goes on there)"
        ;;
      esac
      [ -n "${!key}" ] || printf -v "$key" %s "$value"
      kept+="$key=$value "
      ;;
    esac
  done <"$tmp/settings"
}

save_settings() {
  local key text=''
  for key in $settings; do text+=$key=${!key}$'\n'; done
  keep "${text%$'\n'}" "$home/settings"
}

# Runs a command, handing SIGTERM on to it, and sets `code` to its exit code.
forward() { # COMMAND...
  local child interrupted=1
  "$@" &
  child=$!
  trap 'interrupted=1; kill -TERM "$child" 2>/dev/null || true' TERM INT
  while [ -n "$interrupted" ]; do
    interrupted=''
    wait "$child" && code=0 || code=$?
  done
}

# Prints the command that trains, with the run's folder and the cache of
# compiled programs in the bucket.
train_command() { # ARGUMENT...
  local all argument
  all=(python -m poison_jax.train "$@")
  case " $* " in *" --workdir="*) ;; *) all+=("--workdir=$bucket/runs/$name") ;; esac
  for argument in "$@"; do # Only a --config can be overridden.
    case $argument in --config=*)
      all+=("--config.runtime.compilation_cache=$bucket/cache")
      ;;
    esac
  done
  quoted "${all[@]}"
}
