"""Trials on a Ray cluster: an agent per device (or per machine without one) that holds a `LocalExecutor`.

    scheduler          RayExecutor  --JSON lines-->  bridge process  --Ray-->  Agent  on a node
    (no Ray in it)     executor.py                   bridge.py, fleet.py,      agent.py, host.py: zygote, forked trials
                                                     member.py, courier.py

Through Ray go JSON text and bytes, never an object of a class of ours. An agent numbers its messages and keeps them
until they are acknowledged; one that nobody polls for the length of a lease tells its trials to leave and ends. Where a
node sees the sweep's directory, trials work in it ("shared"); where it does not, they work in a scratch folder of their
node and the bridge carries files ("streamed").
"""
