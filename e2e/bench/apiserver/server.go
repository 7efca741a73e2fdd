package apiserver

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/streaming"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
)

// resources are what the agent watches.
var resources = map[string]schema.GroupVersionKind{
	"pods":            corev1.SchemeGroupVersion.WithKind("Pod"),
	"namespaces":      corev1.SchemeGroupVersion.WithKind("Namespace"),
	"nodes":           corev1.SchemeGroupVersion.WithKind("Node"),
	"networkpolicies": networkingv1.SchemeGroupVersion.WithKind("NetworkPolicy"),
}

const (
	protobufType = "application/vnd.kubernetes.protobuf"
	jsonType     = "application/json"
)

// codec writes objects in one media type.
type codec struct {
	mediaType string
	info      runtime.SerializerInfo
}

func format(mediaType string) codec {
	info, _ := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), mediaType)
	return codec{mediaType, info}
}

func (c codec) encode(o runtime.Object, w io.Writer) error {
	gv := metav1.SchemeGroupVersion
	if gvks, _, err := scheme.Scheme.ObjectKinds(o); err == nil {
		gv = gvks[0].GroupVersion()
	}
	return scheme.Codecs.EncoderForVersion(c.info.Serializer, gv).Encode(o, w)
}

// accepted returns the first media type of the request that is understood.
func accepted(r *http.Request) codec {
	for part := range strings.SplitSeq(r.Header.Get("Accept"), ",") {
		if t, _, _ := strings.Cut(strings.TrimSpace(part), ";"); t == protobufType {
			return format(protobufType)
		} else if t == jsonType {
			break
		}
	}
	return format(jsonType)
}

// ServeHTTP serves GET for the collections of the whole cluster.
func (s *Store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	resource, ok := map[string]string{
		"/api/v1/pods":       "pods",
		"/api/v1/namespaces": "namespaces",
		"/api/v1/nodes":      "nodes",
		"/apis/networking.k8s.io/v1/networkpolicies": "networkpolicies",
	}[r.URL.Path]
	if !ok || r.Method != http.MethodGet {
		http.NotFound(w, r)
		return
	}
	var err error
	if v := r.URL.Query().Get("watch"); v == "1" || v == "true" {
		err = s.watch(w, r, resource)
	} else {
		err = s.writeList(w, r, resource)
	}
	if err != nil && r.Context().Err() == nil {
		// Headers may be out already; a broken stream is what a client gets
		// from a real server as well.
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func (s *Store) writeList(w http.ResponseWriter, r *http.Request, resource string) error {
	objects, rv := s.list(resource)
	gvk := s.collections[resource].gvk
	list, err := scheme.Scheme.New(gvk.GroupVersion().WithKind(gvk.Kind + "List"))
	if err != nil {
		return fmt.Errorf("make a list of %s: %w", resource, err)
	}
	items := make([]runtime.Object, 0, len(objects))
	for _, o := range objects {
		items = append(items, o)
	}
	if err := meta.SetList(list, items); err != nil {
		return fmt.Errorf("fill the list of %s: %w", resource, err)
	}
	list.(metav1.ListInterface).SetResourceVersion(strconv.FormatUint(rv, 10))
	c := accepted(r)
	w.Header().Set("Content-Type", c.mediaType)
	return c.encode(list, w)
}

// watch streams events. With sendInitialEvents it begins with all that is
// there, and a bookmark that says so (KEP-3157).
func (s *Store) watch(w http.ResponseWriter, r *http.Request, resource string) error {
	q := r.URL.Query()
	rv, err := strconv.ParseUint("0"+q.Get("resourceVersion"), 10, 64)
	if err != nil {
		return fmt.Errorf("resource version: %w", err)
	}
	c := accepted(r)
	w.Header().Set("Content-Type", c.mediaType+";stream=watch")
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w).Flush
	out := stream{c, streaming.NewEncoder(c.info.StreamSerializer.Framer.NewFrameWriter(w), c.info.StreamSerializer.Serializer)}

	if q.Get("sendInitialEvents") == "true" {
		if rv, err = s.sendAll(out, resource); err != nil {
			return err
		}
	}
	if err := flush(); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	stop := func() bool { return r.Context().Err() != nil }
	go func() {
		<-r.Context().Done()
		s.wake()
	}()
	for !stop() {
		var events []event
		if events, rv = s.since(resource, rv, stop); len(events) == 0 {
			return nil
		}
		for _, e := range events {
			if err := out.send(e.kind, e.object); err != nil {
				return err
			}
		}
		if err := flush(); err != nil {
			return fmt.Errorf("flush: %w", err)
		}
	}
	return nil
}

func (s *Store) sendAll(out stream, resource string) (uint64, error) {
	objects, rv := s.list(resource)
	for _, o := range objects {
		if err := out.send(watch.Added, o); err != nil {
			return 0, err
		}
	}
	empty, err := scheme.Scheme.New(s.collections[resource].gvk)
	if err != nil {
		return 0, fmt.Errorf("make a bookmark: %w", err)
	}
	bookmark, ok := empty.(Object)
	if !ok {
		return 0, errors.New("a bookmark without metadata")
	}
	bookmark.SetResourceVersion(strconv.FormatUint(rv, 10))
	bookmark.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	return rv, out.send(watch.Bookmark, bookmark)
}

// stream writes watch events: frames, each an event around an encoded object.
type stream struct {
	codec
	frames streaming.Encoder
}

func (s stream) send(kind watch.EventType, o runtime.Object) error {
	var b bytes.Buffer
	if err := s.encode(o, &b); err != nil {
		return fmt.Errorf("encode an object: %w", err)
	}
	if err := s.frames.Encode(&metav1.WatchEvent{Type: string(kind), Object: runtime.RawExtension{Raw: b.Bytes()}}); err != nil {
		return fmt.Errorf("send an event: %w", err)
	}
	return nil
}
