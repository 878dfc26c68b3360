#!/bin/bash
# Two nodes on one machine: two network namespaces joined by a virtual cable, one torchrun in each, the traffic between them in no other
# network. Checks that the losses are those of one process; then pulls the cable and shows how both nodes end. Needs root (ip netns).
#   benchmarks/two_nodes.sh [PYTHON]
set -euo pipefail
python=${1:-.venv/bin/python}
work=$(mktemp -d)
export OMP_NUM_THREADS=1 PIXELKILN_CACHE=$work/cache
finish() {
    for node in a b; do ip netns pids pk-$node 2>/dev/null | xargs -r kill -9 2>/dev/null || true; done
    sleep 0.5
    ip netns del pk-a 2>/dev/null || true
    ip netns del pk-b 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT

ip netns add pk-a
ip netns add pk-b
ip link add pk-va netns pk-a type veth peer name pk-vb netns pk-b
for node in a b; do
    ip -n pk-$node addr add 192.0.2.$([ $node = a ] && echo 1 || echo 2)/30 dev pk-v$node  # addresses for documentation, routed nowhere
    ip -n pk-$node link set pk-v$node up
    ip -n pk-$node link set lo up
done

node() { # node NAME RANK PROCESSES ARGS...: one torchrun of two, with a host name of its own
    local name=$1 rank=$2 processes=$3
    shift 3
    ip netns exec pk-$name unshare --uts sh -c "hostname node-$name; exec \"\$@\"" sh env GLOO_SOCKET_IFNAME=pk-v$name \
        "$python" -m torch.distributed.run --nnodes 2 --node-rank $rank --nproc-per-node $processes --master-addr 192.0.2.1 --master-port 29400 \
        -m pixelkiln "$@" 2> "$work/$name.log"
}
both() { # both PROCESSES ARGS...: the same command on both nodes
    node b 1 "$@" &
    node a 0 "$@" || { cat "$work/a.log" "$work/b.log"; exit 1; }
    wait $!
}

for recipe in ddpm dcgan; do
    for processes in 1 2; do
        parts=$((2 * processes))
        common=(train $recipe --data digits --size tiny --steps 20 --precision fp32 --train.log_every 1 --train.batch 32 --quiet)
        both $processes "${common[@]}" --out "$work/$recipe-$parts" > "$work/two.log"
        "$python" -m pixelkiln "${common[@]}" --out "$work/$recipe-$parts-one" --train.accumulate $parts > "$work/one.log"
        "$python" - "$work/$recipe-$parts-one" "$work/$recipe-$parts" "$recipe, 2 nodes x $processes" <<'EOF'
import json, sys
one, two = ([json.loads(line) for line in open(f"{run}/metrics.jsonl")] for run in sys.argv[1:3])
skip = {"step", "seconds", "images_per_s", "idle"}
assert len(one) == len(two) == 20
worst = max(abs(a[k] - b[k]) / max(abs(a[k]), 1e-6) for a, b in zip(one, two) for k in a if k not in skip)
print(f"{sys.argv[3]}: last loss terms {({k: round(v, 6) for k, v in two[-1].items() if k not in skip})}; largest relative difference from one process in 20 steps {worst:.1e}")
assert worst < 1e-5
EOF
    done
done
echo "bytes over the cable: $(ip netns exec pk-a cat /sys/class/net/pk-va/statistics/tx_bytes) from a, $(ip netns exec pk-b cat /sys/class/net/pk-vb/statistics/tx_bytes) from b"

common=(train ddpm --data digits --size tiny --steps 100000 --precision fp32 --train.save_every 20 --quiet --out "$work/cut")
node b 1 1 "${common[@]}" > /dev/null & b=$!
node a 0 1 "${common[@]}" > /dev/null & a=$!
until [ -d "$work/cut/checkpoints/step-00000020" ]; do kill -0 $a $b; sleep 0.2; done  # a process that has ended ends the script
echo "pulling the cable at step $(ls "$work/cut/checkpoints" | tail -1)"
ip -n pk-a link set pk-va down
begin=$(date +%s)
wait $a || echo "node a ended with status $? after $(($(date +%s) - begin)) s: $(grep -m1 ^pixelkiln: "$work/a.log")"
wait $b || echo "node b ended with status $? after $(($(date +%s) - begin)) s: $(grep -m1 ^pixelkiln: "$work/b.log")"
