package apiserver_test

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/selvage-net/selvage/e2e/bench"
	"github.com/selvage-net/selvage/e2e/bench/apiserver"
)

var shape = bench.Shape{LocalPods: 5, RemotePods: 200, Policies: 20, PerPod: 2, Peers: 10}

// serve starts a server with the shape's cluster and returns a client of it.
func serve(t *testing.T, contentType string) (*apiserver.Store, kubernetes.Interface) {
	t.Helper()
	store := apiserver.NewStore()
	store.Fill(shape.Snapshot())
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	ready, done := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- store.Serve(ctx, kubeconfig, func() { close(ready) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		done <- nil
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.ContentType = contentType
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return store, client
}

func TestInformersFollow(t *testing.T) {
	for _, contentType := range []string{"application/vnd.kubernetes.protobuf", "application/json"} {
		t.Run(contentType, func(t *testing.T) {
			store, client := serve(t, contentType)
			factory := informers.NewSharedInformerFactory(client, 0)
			pods := factory.Core().V1().Pods()
			policies := factory.Networking().V1().NetworkPolicies()
			nodes := factory.Core().V1().Nodes().Informer()
			var added, updated, deleted atomic.Int64
			if _, err := pods.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
				AddFunc:    func(any) { added.Add(1) },
				UpdateFunc: func(_, _ any) { updated.Add(1) },
				DeleteFunc: func(any) { deleted.Add(1) },
			}); err != nil {
				t.Fatal(err)
			}
			policies.Informer()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			factory.Start(ctx.Done())
			defer factory.Shutdown()
			defer cancel()
			for kind, ok := range factory.WaitForCacheSync(ctx.Done()) {
				if !ok {
					t.Fatalf("%v did not sync", kind)
				}
			}
			all, err := pods.Lister().List(labels.Everything())
			if err != nil {
				t.Fatal(err)
			}
			if len(all) != shape.LocalPods+shape.RemotePods {
				t.Errorf("%d pods, want %d", len(all), shape.LocalPods+shape.RemotePods)
			}
			if all[0].Status.PodIP == "" || len(all[0].ManagedFields) == 0 || all[0].Spec.NodeName == "" {
				t.Errorf("a pod lacks what real ones have: %v", all[0])
			}
			if n := len(nodes.GetStore().List()); n != 1+(shape.RemotePods+109)/110 {
				t.Errorf("%d nodes", n)
			}
			np, err := policies.Lister().List(labels.Everything())
			if err != nil {
				t.Fatal(err)
			}
			if len(np) != shape.Policies {
				t.Errorf("%d policies, want %d", len(np), shape.Policies)
			}

			store.Churn(ctx, shape.Snapshot().Pods, 1000, 300*time.Millisecond)
			last := &corev1.Pod{}
			last.Namespace, last.Name = "default", "last"
			store.Put("pods", last)
			for {
				if _, err := pods.Lister().Pods("default").Get("last"); err == nil {
					break
				} else if ctx.Err() != nil {
					t.Fatal("the last event did not come")
				}
				time.Sleep(10 * time.Millisecond)
			}
			if updated.Load() == 0 || deleted.Load() == 0 || added.Load() <= int64(len(all)) {
				t.Errorf("churn was seen as %d added, %d updated, %d deleted", added.Load()-int64(len(all)), updated.Load(), deleted.Load())
			}
		})
	}
}

func TestObjectsAreAsBigAsRealOnes(t *testing.T) {
	store := apiserver.NewStore()
	store.Fill(shape.Snapshot())
	for resource, least := range map[string]int{"pods": 4000, "nodes": 4000, "networkpolicies": 400} {
		n, mean, err := store.Size(resource)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 || mean < least || mean > 6500 {
			t.Errorf("%d %s of %d bytes", n, resource, mean)
		}
	}
}
