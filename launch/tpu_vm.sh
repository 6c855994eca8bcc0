#!/usr/bin/env bash
# Trains on a Cloud TPU slice, or several, through queued resources.
#
#   bash launch/tpu_vm.sh COMMAND --name=NAME --bucket=gs://BUCKET [options]
#
#   up       create, setup, run and watch, until the run ends; a preempted
#            slice is made again and the run goes on from its last checkpoint
#   create   asks for the slice and waits until it is there
#   setup    puts the code of the last commit and its packages on every host
#   prepare  writes the token store, each host a part; then joins the parts
#   run      starts training on every host and returns
#   logs     follows the log of process 0 (Ctrl-C ends the following only)
#   status   the slice's state and each host's
#   stop     saves and ends the run; the slice stays, and costs
#   delete   stops the run and gives the slice back
#
# `stop` and `delete` end an `up` that watches, wherever it runs.
#
# The first command names the slice, and the bucket keeps it for the others, on
# any machine: --zone, --project, --type (v5p-128, v5litepod-64, v6e-256),
# --slices=N (1), --spot or --reserved (else on demand), --runtime-version
# (else the one that fits the type). What follows `--` goes to poison_jax.train
# or poison_jax.prepare:
#
#   bash launch/tpu_vm.sh up --name=a --bucket=gs://b --project=p \
#     --zone=us-east5-a --type=v5p-128 --spot -- \
#     --config=configs/dos.py:size=13b --config.corpus.store=gs://b/stores/c4
#
# More: prepare --part=I/N (that part alone, on one host), logs --of=prepare,
# up --delete-when-done, and --dry-run, which prints every step instead.
# See launch/README.md for the costs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec 3>&1
dry_run=''
. launch/steps.sh

poll=30 # Seconds between two looks.

name='' bucket='' zone='' project='' type='' slices='' tier='' spot=''
reserved='' runtime_version='' part='' of='' delete_when_done=''
arguments=() has_arguments=''
ended='' ended_before='' # What $home/ended tells, and told as `up` began.
own='' # Set where the slice is this `up`'s to delete.
verbs="up create setup prepare run logs status stop delete"
options="name bucket zone project type slices runtime-version part of"
switches="spot reserved delete-when-done"
settings="zone project type slices tier runtime_version"

check() {
  [[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    fail 2 "--name='$name': give small letters, digits and hyphens, as --name=a"
  check_options
  only_for "logs status" --of "$of"
  only_for up --delete-when-done "$delete_when_done"
  only_for "up run prepare" -- "$has_arguments"
  case $of in '' | train | prepare | finish) ;; *)
    fail 2 "--of='$of': known are train, prepare and finish"
    ;;
  esac
  tier=${spot:+--spot}${reserved:+--reserved}
  [ -z "$spot" ] || [ -z "$reserved" ] || fail 2 "give --spot or --reserved"
  need gcloud "install it from https://cloud.google.com/sdk/docs/install," \
    "then run gcloud init"
  changeable=''
  case $verb in up | create) changeable="type slices tier runtime_version" ;; esac
  load_settings
  [ -n "$runtime_version" ] || case $type in
    v5p-*) runtime_version=v2-alpha-tpuv5 ;;
    v5litepod-*) runtime_version=v2-alpha-tpuv5-lite ;;
    v6e-*) runtime_version=v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) runtime_version=tpu-ubuntu2204-base ;;
    *)
      fail 2 "--type=$type: known are v4-, v5p-, v5litepod- and v6e-N; for" \
        "another, give --runtime-version too"
      ;;
  esac
}

nodes() {
  local i
  [ "$slices" -gt 1 ] || { echo "$name" && return; }
  for ((i = 0; i < slices; i++)); do echo "$name-$i"; done
}

# Sets `state` to the queued resource's, to MISSING, or false: to UNKNOWN.
look() { # ASSUMED
  if ! state=$(ask "$1" gcloud compute tpus queued-resources describe "$name" \
    "${place[@]}" '--format=value(state.state)' 2>"$tmp/error"); then
    state=UNKNOWN
    grep -q NOT_FOUND "$tmp/error" || return 1
    state=MISSING
  fi
}

no_quota() {
  fail 2 "no room for $slices x $type${tier:+ $tier} in $zone: $1. Ask for" \
    "quota at https://console.cloud.google.com/iam-admin/quotas?project=$project" \
    "(service: Cloud TPU API), or try another --zone, --type, --spot or none"
}

create_slice() {
  local ids=(--node-id="$name") asked before=$kept
  asked="type=$type slices=$slices tier=$tier runtime_version=$runtime_version "
  while :; do
    look MISSING || fail 2 "gcloud: $(problem)"
    [ "$state" = DELETING ] || break # Its name isn't free yet.
    sleep "$poll"
  done
  if [ "$state" != MISSING ]; then
    case "$kept" in *"$asked"*) ;; *)
      fail 2 "$name exists with other settings (${kept:-not made by this script}):" \
        "delete it first, or choose another --name"
      ;;
    esac
    say "$name exists already: $state"
    return
  fi
  [ "$slices" = 1 ] || ids=(--node-count="$slices" --node-prefix="$name")
  save_settings
  say "asking for $slices x $type in $zone"
  kept=$asked
  heed
  if run gcloud compute tpus queued-resources create "$name" "${place[@]}" \
    "${ids[@]}" --accelerator-type="$type" \
    --runtime-version="$runtime_version" ${tier:+"$tier"} --quiet \
    2>"$tmp/error"; then
    heed delete_slice
    return
  fi
  # Nothing was made: it may be tried elsewhere.
  [ -n "$before" ] || gcloud storage rm "$home/settings" >/dev/null 2>&1 || true
  ! grep -qiE 'quota|RESOURCE_EXHAUSTED' "$tmp/error" || no_quota "$(problem)"
  fail 2 "the slice can't be made: $(problem)"
}

# False where the slice is preempted before it is ready.
wait_active() {
  local before='' reason
  while :; do
    heed
    look ACTIVE || fail 2 "gcloud: $(problem)"
    [ "$state" = "$before" ] || say "$name: $state"
    before=$state
    case $state in
      ACTIVE) return ;;
      SUSPENDING | SUSPENDED) return 1 ;;
      FAILED)
        reason=$(gcloud compute tpus queued-resources describe "$name" \
          "${place[@]}" '--format=value(state.failedData.error.message)' || true)
        [[ ! $reason =~ [Qq]uota|RESOURCE_EXHAUSTED ]] || no_quota "$reason"
        fail 2 "the request for $name failed: ${reason:-no reason given};" \
          "delete it, then try again"
        ;;
      MISSING | DELETING) gone ;;
    esac
    sleep "$poll"
  done
}

gone() {
  heed
  own=''
  fail 2 "$name has been deleted: nothing runs there; 'up' makes it again, and" \
    "the run goes on from its last checkpoint"
}

# Tells an `up` that watches that it is to end. Each telling differs from the
# one before, so that the next `up` needs to remove nothing.
tell_up() {
  put "$verb $(date -u +%Y-%m-%dT%H:%M:%SZ) $$" "$home/ended" ||
    say "$home/ended can't be written ($(problem)): an 'up' that watches must" \
      "be ended by hand"
}

read_ended() {
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    ended=$(ask '' gcloud storage cat "$home/ended" 2>"$tmp/error") && return
    ended=''
    ! grep -qiE 'matched no objects|not.found|404' "$tmp/error" || return 0
    sleep "$poll"
  done
  fail 1 "$home/ended can't be read: $(problem)"
}

# Ends `up` where `stop` or `delete` was given since it began. Right after a
# step that may have crossed them, TAKE-BACK undoes it.
heed() { # [TAKE-BACK]
  [ "$verb" = up ] && [ -z "$dry_run" ] || return 0
  read_ended
  [ -n "$ended" ] && [ "$ended" != "$ended_before" ] || return 0
  own=''
  [ $# = 0 ] || "$1" || say "not stopped everywhere: $failures"
  case $ended in delete*)
    fail 2 "$name was given back with 'delete': 'up' makes it again, and the run" \
      "goes on from its last checkpoint"
    ;;
  esac
  fail 75 "$name was stopped with 'stop': 'up' goes on from the last checkpoint;" \
    "the slice, where there is one, costs until 'delete'"
}

delete_slice() {
  if run gcloud compute tpus queued-resources delete "$name" "${place[@]}" \
    --force --quiet 2>"$tmp/error"; then
    say "$name is deleted and costs nothing any more"
  elif grep -q NOT_FOUND "$tmp/error"; then
    say "$name is gone already"
  else
    fail 2 "$name can't be deleted, and still costs: $(problem)"
  fi
}

# Executes a command on every worker of every slice at once; @SLICE@ stands for
# the slice's number. Sets `answers` to what they print. False where a worker
# fails; then `failures` names it.
on_hosts() { # ASSUMED WORKER COMMAND
  local node number=0 text pids='' pid
  answers='' failures=''
  for node in $(nodes); do
    text=${3//@SLICE@/$number}
    number=$((number + 1))
    ssh=(gcloud compute tpus tpu-vm ssh "$node" "${place[@]}" --quiet
      --worker="$2" --command="$text")
    if [ -n "$dry_run" ]; then
      quoted "${ssh[@]}" >&3
      answers+="$1"$'\n'
    else
      "${ssh[@]}" >"$tmp/$node.out" 2>"$tmp/$node.err" </dev/null &
      pids+="$! "
    fi
    [ "$2" != 0 ] || break # Process 0 is on the first slice.
  done
  [ -z "$dry_run" ] || return 0
  for node in $(nodes); do
    [ -n "$pids" ] || break
    pid=${pids%% *} pids=${pids#* }
    text=0
    wait "$pid" || text=$?
    answers+="$(cat "$tmp/$node.out")"$'\n'
    read_failures "$node" "$text"
  done
  [ -z "$failures" ]
}

# gcloud names a worker whose command failed; one that can't be reached, it
# tries ten times.
read_failures() { # NODE EXIT-CODE
  local file=$tmp/$1.err workers
  workers=$({
    sed -n 's/.*execution on worker \([0-9]*\) failed with exit status \([0-9]*\).*/worker \1 (exit code \2)/p' "$file"
    sed -n 's/.*Attempting to connect to worker \([0-9]*\).*/\1/p' "$file" |
      sort | uniq -c | awk '$1 >= 10 {print "worker " $2 " (no ssh)"}'
  } | sort -u | paste -s -d ',' -)
  if [ -n "$workers" ]; then
    failures+="$1: $workers. "
  elif [ "$2" != 0 ]; then
    cp "$file" "$tmp/error"
    failures+="$1: $(problem). "
  fi
}

need_slice() {
  look ACTIVE || fail 2 "gcloud: $(problem)"
  [ "$state" = ACTIVE ] ||
    fail 2 "$name is $state: nothing runs there; 'up' makes it and runs"
}

recorded_commit() {
  commit=$(ask "$(git rev-parse --short=12 HEAD 2>/dev/null || true)" \
    gcloud storage cat "$home/commit" 2>/dev/null) ||
    fail 2 "$home/commit is missing: the hosts of $name aren't set up;" \
      "give 'setup' first"
}

publish_commit() {
  publish_code "$commit" "$home/code-$commit.tar.gz"
  keep "$commit" "$home/commit"
}

# Says whether the training runs already; sets `commit` to that it has, if any.
is_running() {
  commit=$(ask '' gcloud storage cat "$home/commit" 2>/dev/null) || commit=''
  [ -n "$commit" ] || return 1
  look ACTIVE || fail 2 "gcloud: $(problem)"
  [ "$state" = ACTIVE ] || return 1
  host_states train all || ! is_preempted || return 1
  [ -z "$failures" ] || fail 1 "can't see whether $name is running: $failures"
  [ "$(verdict)" = running ]
}

setup_hosts() {
  local code=poison_jax/$commit
  say "setting up the hosts with commit $commit (minutes, where it is new)"
  on_hosts '' all "set -eo pipefail; cd; if [ -e $code/ready ]; then \
echo \"\$HOSTNAME has it already\"; else mkdir -p $code; \
gcloud storage cp $home/code-$commit.tar.gz - | tar xz -C $code; \
bash $code/launch/worker.sh setup; touch $code/ready; fi" || return 1
  say "$(sed '/has it already$/!d' <<<"$answers" | grep -c . || true) hosts had" \
    "it already; every host is ready"
}

worker() { # What starts worker.sh of the chosen commit on a host.
  echo "bash poison_jax/$commit/launch/worker.sh"
}

host_states() { # JOB WORKER
  on_hosts 'HOST exit 0' "$2" \
    "$(worker) state $1 2>/dev/null || echo \"\$HOSTNAME none\""
  answers=$(sed '/^$/d' <<<"$answers" | sort)
  [ -z "$failures" ]
}

# What the hosts' states amount to: running, done, again, or an exit code.
verdict() {
  awk '
    $2 == "running" {running = 1}
    $2 == "none" || $2 == "lost" {lost = 1}
    $2 == "exit" && $3 == 75 {stopped = 1}
    $2 == "exit" && $3 != 0 && $3 != 75 && !bad {bad = $3}
    END {
      if (running) print "running"
      else if (bad) print bad
      else if (lost) print "lost"
      else if (stopped) print "again"
      else print "done"
    }' <<<"$answers"
}

start_job() { # JOB WORKER COMMAND...
  local job=$1 worker=$2
  shift 2
  on_hosts '' "$worker" "$(worker) start $job $home/logs/$job $*" && return
  heed stop_jobs
  fail 1 "$failures The other hosts have started: the same command starts" \
    "what doesn't run; 'stop' ends them"
}

train() {
  heed
  start_job train all "$(train_command ${arguments[@]+"${arguments[@]}"})"
  heed stop_jobs
  say "started: follow it with logs, see it with status"
}

# Makes a preempted slice again. One that is being deleted is suspended first.
remake() {
  heed
  say "$name is preempted: making it again"
  while :; do
    look SUSPENDED || fail 2 "gcloud: $(problem)"
    [ "$state" = SUSPENDING ] || break
    sleep "$poll"
  done
  case $state in MISSING | DELETING) gone ;; esac
  delete_slice
  create_slice
}

is_preempted() {
  local node
  look ACTIVE || return 1
  case $state in
    SUSPENDING | SUSPENDED) return 0 ;;
    MISSING | DELETING) gone ;;
  esac
  for node in $(nodes); do
    case $(gcloud compute tpus tpu-vm describe "$node" "${place[@]}" \
      '--format=value(state)' 2>/dev/null) in
      PREEMPTED | TERMINATED | STOPPED) return 0 ;;
    esac
  done
  return 1
}

# Slice there and hosts ready, however often it is preempted on the way.
make_ready() {
  while :; do
    if wait_active; then
      setup_hosts && return
      is_preempted || fail 1 "setting up failed on $failures"
    fi
    remake
  done
}

restart() {
  heed
  say "starting again from the last checkpoint"
  make_ready
  train
}

# Looks until the job has ended on every host; returns 0 or its exit code.
watch() { # JOB WORKER
  local misses=0 now
  while :; do
    heed
    look ACTIVE || true
    now=''
    case $state in
      ACTIVE)
        if host_states "$1" "$2"; then
          misses=0
          now=$(verdict)
        elif is_preempted; then
          now=lost
        else
          misses=$((misses + 1))
          say "can't see every host: $failures"
        fi
        ;;
      SUSPENDING | SUSPENDED) now=lost ;;
      MISSING | DELETING) gone ;;
      FAILED) fail 2 "$name is $state: the run has ended" ;;
      UNKNOWN) misses=$((misses + 1)) ;;
    esac
    [ "$misses" -lt 10 ] ||
      fail 1 "$name can't be seen any more: ${failures:-$(problem)}; what runs" \
        "there may go on, and costs, until it is deleted: look with status"
    case $now in
      '' | running) ;;
      done) return 0 ;;
      lost | again)
        [ "$1" = train ] || return 75
        restart
        ;;
      *) return "$now" ;;
    esac
    sleep "$poll"
  done
}

explain() { # EXIT-CODE
  case $1 in
    2) echo "what it was given can't be used" ;;
    3) echo "a check failed" ;;
    4) echo "the loss isn't finite" ;;
    *) echo "it broke off" ;;
  esac
}

# Ends with what a job ended with, which only 75 would make worth repeating.
conclude() { # JOB CODE
  [ "$2" != 0 ] || return 0
  say "$answers"
  [ "$2" != 75 ] || fail 75 "$1 was stopped before its end: the same command" \
    "goes on"
  fail "$2" "$1 ended with exit code $2 ($(explain "$2")): not started again." \
    "The logs: logs --of=$1, and $home/logs/$1"
}

do_up() {
  local code=0
  choose_arguments
  read_ended
  ended_before=$ended
  if is_running; then
    say "$name is running already, with commit $commit: watching it" \
      "${has_arguments:+(the arguments given here are not used)}"
    arguments=()
    had_arguments || fail 1 "$home/command can't be read, which tells what runs"
    find_folder
    own_slice
  else
    # A run that goes on keeps its commit; one that is asked for gets this one.
    [ -n "$commit" ] && [ -z "$has_arguments" ] || commit=$(checked_commit)
    create_slice
    own_slice
    publish_commit
    make_ready
    keep_arguments
    train
  fi
  watch train all || code=$?
  conclude train "$code"
  say "done: $folder"
  [ -n "$delete_when_done" ] || say "the slice still costs: give it back with" \
    "delete --name=$name --bucket=$bucket"
}

# From here on --delete-when-done holds, however `up` ends. A signal ends the
# watching only, and not the run.
own_slice() {
  [ -n "$delete_when_done" ] || return 0
  own=1
  trap 'own="" && fail 130 "interrupted: $name is not deleted, and costs; what" \
    "runs there goes on, and the same command watches it"' INT TERM HUP
}

# Keeps the exit code, but for a success after which the slice still costs.
leave() {
  local code=$?
  [ -z "$own" ] || (delete_slice) || [ "$code" != 0 ] || code=2
  rm -rf "$tmp"
  exit "$code"
}

do_create() {
  create_slice
  wait_active || fail 75 "$name was preempted before it was ready: give 'delete'," \
    "then 'create' again, or 'up', which does both"
}

do_setup() {
  need_slice
  ! is_running || fail 2 "$name is running with commit $commit: end it with" \
    "'stop' before the hosts get another"
  commit=$(checked_commit)
  publish_commit
  setup_hosts || fail 1 "setting up failed on $failures"
}

do_run() {
  choose_arguments
  need_slice
  recorded_commit
  host_states train all || fail 1 "$failures"
  if [ "$(verdict)" = running ]; then
    grep -qv ' running$' <<<"$answers" ||
      fail 2 "$name is running already: follow it with logs, or end it with stop"
    say "some hosts run it already; starting it on the others"
  fi
  keep_arguments
  train
}

do_prepare() {
  local code=0 workers=all number command
  [ ${#arguments[@]} -gt 0 ] ||
    fail 2 "give the arguments of poison_jax.prepare after --, as" \
      "-- --config=configs/dos.py:size=13b --config.corpus.store=$bucket/stores/c4"
  check_for_hosts poison_jax.prepare "${arguments[@]}"
  need_slice
  recorded_commit
  number="\$($(worker) part @SLICE@ $slices)"
  [ -z "$part" ] || { workers=0 number=$part; }
  # On the hosts' processors: the TPU is for the training.
  command="env JAX_PLATFORMS=cpu $(quoted python -m poison_jax.prepare "${arguments[@]}")"
  start_job prepare "$workers" "$command --part=$number"
  watch prepare "$workers" || code=$?
  conclude prepare "$code"
  start_job finish 0 "$command --finish"
  watch finish 0 || code=$?
  conclude finish "$code"
  say "the store is finished"
}

do_logs() {
  need_slice
  recorded_commit
  run gcloud compute tpus tpu-vm ssh "$(nodes | head -n 1)" "${place[@]}" \
    --quiet --worker=0 --command="$(worker) log ${of:-train} --follow"
}

do_status() {
  look ACTIVE || fail 2 "gcloud: $(problem)"
  say "$name: $slices x $type in $zone${tier:+, $tier}: $state"
  [ "$state" = ACTIVE ] || return 0
  recorded_commit
  host_states "${of:-train}" all || say "not seen: $failures"
  say "$answers"
}

stop_jobs() {
  on_hosts '' all \
    "for job in train prepare finish; do $(worker) stop \$job; done"
}

do_stop() {
  tell_up # Also one that waits for its slice.
  need_slice
  recorded_commit
  stop_jobs || fail 1 "not stopped everywhere: $failures"
  say "$name is stopped, and an 'up' that watches it ends; the slice stays, and" \
    "costs, until 'delete'"
}

do_delete() {
  look ACTIVE || fail 2 "gcloud: $(problem)"
  tell_up
  if [ "$state" = ACTIVE ] && { [ -n "$dry_run" ] ||
    gcloud storage ls "$home/commit" >/dev/null 2>&1; }; then
    recorded_commit
    stop_jobs || say "not stopped everywhere: $failures"
  fi
  delete_slice
  had_arguments || true
  find_folder
  say "the run and the settings stay in $folder and $home"
}

parse "$@"
tmp=$(mktemp -d)
trap leave EXIT
check
"do_$verb"
