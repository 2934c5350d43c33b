"""Trials on a Ray cluster: an agent per device (or per machine without one) that holds a `LocalExecutor`.

    scheduler          RayExecutor  --JSON lines-->  bridge process  --Ray-->  Agent  on a node
    (no Ray in it)     executor.py                   bridge.py, cluster.py     agent.py, host.py: zygote, forked trials

fleet.py holds all agents of a sweep; member.py follows one of them, lives.py a trial on it, nodes.py the machines;
recovering.py gets a node ready, courier.py carries files, encoding.py and encoders.py spread the encoding.

Through Ray go JSON text and bytes, never an object of a class of ours. An agent numbers its messages and keeps them
until they are acknowledged; one that nobody polls for the length of a lease tells its trials to leave and ends. Where a
node sees the sweep's directory, trials work in it ("shared"); where it does not, they work in a scratch folder of their
node and the bridge carries files ("streamed").
"""
