"""Trials on a Ray cluster: an agent per device (or per machine without one) that holds a `LocalExecutor`.

    scheduler          RayExecutor  --JSON lines-->  bridge process  --Ray-->  Agent  on a node
    (no Ray in it)     executor.py                   bridge.py, cluster.py     agent.py, host.py: zygote, forked trials

fleet.py holds all agents of a sweep, running.py their trials; member.py follows an agent, lives.py a trial on it,
nodes.py the machines; recovery.py prepares a node, courier.py carries files, encoding.py and encoders.py spread the
encoding.

Only JSON text and bytes pass through Ray, no objects of our classes. An agent numbers its messages and keeps them until
they are acknowledged; if it is not polled for the length of a lease, it stops its trials and exits. If a node sees the
sweep's directory, trials work in it ("shared"); otherwise they work in a scratch folder of the node and the bridge
copies files ("streamed").
"""
