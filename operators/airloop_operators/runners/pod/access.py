"""How the cluster is reached: by Airflow's own Kubernetes hook and the connection that it reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from airloop.errors import BadConfiguration
from airloop_operators.runners.pod.sizes import Pods


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach the cluster."""

    apis: tuple[Any, Any]
    """Two ``CoreV1Api`` that share nothing: a signal handler must not wait for a lock that its own thread holds."""
    namespace: str
    in_cluster: bool = False
    """It is that of the pod's own service account, without which the asynchronous client does not look there."""


Connect = Callable[[Pods], Access]


def connect(pods: Pods) -> Access:
    """
    By the Airflow connection that is configured.

    :raises BadConfiguration: the provider is not installed, or nothing says where the cluster is.
    """
    try:
        from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
        from kubernetes.client import CoreV1Api
        from kubernetes.config import ConfigException
    except ImportError as cause:
        raise BadConfiguration(
            f"pods need Airflow's Kubernetes provider: {cause}", "install airloop[kubernetes]"
        ) from cause
    try:
        hook = KubernetesHook(conn_id=pods.connection)
        apis = (CoreV1Api(hook.get_conn()), CoreV1Api(hook.get_conn()))
        namespace = pods.namespace or hook.get_namespace() or hook.DEFAULT_NAMESPACE
        return Access(apis, namespace, in_cluster=hook.is_in_cluster)
    except ConfigException as cause:
        raise BadConfiguration(
            f"connection {pods.connection!r} does not say where the cluster is: {cause}",
            "set its kube config, or run the worker in the cluster with a service account",
        ) from cause
