package informer

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/streaming"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	restwatch "k8s.io/client-go/rest/watch"
)

// apiServer speaks enough of the Kubernetes API over HTTP to be listed and
// watched, in protobuf or JSON.
type apiServer struct {
	t           *testing.T
	collections [len(Kinds)]*collection
	// mediaType is what it answers in, whatever else is accepted.
	mediaType string
	// noStream makes it one that does not know sendInitialEvents.
	noStream bool
	addr     string

	mu      sync.Mutex
	server  *httptest.Server
	refuse  *apierrors.StatusError
	refused map[Kind]*apierrors.StatusError
	// garbled are the kinds of which it says what nobody understands.
	garbled  map[Kind]bool
	version  string
	requests []request
}

// request is what the server noted of a request.
type request struct {
	path, userAgent, accept string
	query                   url.Values
}

func newAPIServer(t *testing.T, mediaType string) *apiServer {
	t.Helper()
	s := &apiServer{t: t, mediaType: mediaType, addr: "127.0.0.1:0"}
	for _, kind := range Kinds {
		s.collections[kind] = newCollection(kind)
	}
	s.start()
	t.Cleanup(func() {
		s.stop()
		for _, c := range s.collections {
			c.shutdown()
		}
	})
	return s
}

// start listens, at the same address as before if there was one.
func (s *apiServer) start() {
	s.t.Helper()
	l, err := net.Listen("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addr = l.Addr().String()
	s.server = &httptest.Server{Listener: l, Config: &http.Server{Handler: s}}
	s.server.Start()
}

// stop cuts all connections and refuses new ones.
func (s *apiServer) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server != nil {
		s.server.Listener.Close()
		s.server.CloseClientConnections()
		s.server.Close()
		s.server = nil
	}
}

// cut ends all connections.
func (s *apiServer) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.server.CloseClientConnections()
}

// answer makes all requests fail with err, or succeed if it is nil.
func (s *apiServer) answer(err *apierrors.StatusError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = err
}

// answerKind makes requests for a kind fail with err, or be answered with garbage,
// or succeed.
func (s *apiServer) answerKind(kind Kind, err *apierrors.StatusError, garbled bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused = map[Kind]*apierrors.StatusError{kind: err}
	s.garbled = map[Kind]bool{kind: garbled}
}

func (s *apiServer) config() *rest.Config { return &rest.Config{Host: "http://" + s.addr} }

func (s *apiServer) seen() []request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]request(nil), s.requests...)
}

func (s *apiServer) put(objects ...apiObject) {
	s.t.Helper()
	for _, o := range objects {
		id := idOf(o)
		if err := s.collections[id.kind].put(id, o); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *apiServer) remove(objects ...apiObject) {
	s.t.Helper()
	for _, o := range objects {
		id := idOf(o)
		if err := s.collections[id.kind].remove(id); err != nil {
			s.t.Fatal(err)
		}
	}
}

func idOf(o apiObject) identity {
	kind := map[string]Kind{"Pod": Pods, "Namespace": Namespaces, "Node": Nodes, "NetworkPolicy": NetworkPolicies}[typeName(o)]
	return identity{kind, o.GetNamespace(), o.GetName()}
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, request{r.URL.Path, r.UserAgent(), r.Header.Get("Accept"), r.URL.Query()})
	refuse, version := s.refuse, s.version
	s.mu.Unlock()

	if r.URL.Path == "/version" && version != "" {
		fmt.Fprintf(w, `{"major": "1", "gitVersion": %q}`, version)
		return
	}
	var c *collection
	gv := corev1.SchemeGroupVersion
	for _, kind := range Kinds {
		if strings.HasSuffix(r.URL.Path, "/"+kind.String()) {
			c = s.collections[kind]
		}
	}
	if c == nil {
		http.NotFound(w, r)
		return
	}
	s.mu.Lock()
	if s.refused[c.kind] != nil {
		refuse = s.refused[c.kind]
	}
	garbled := s.garbled[c.kind]
	s.mu.Unlock()
	if garbled {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintln(w, `{"kind": ["nonsense"]}`)
		return
	}
	if c.kind == NetworkPolicies {
		gv = networkingv1.SchemeGroupVersion
	}
	var o metav1.ListOptions
	query := r.URL.Query()
	if err := metav1.Convert_url_Values_To_v1_ListOptions(&query, &o, nil); err != nil {
		s.t.Error(err)
	}
	switch {
	case refuse != nil:
		s.fail(w, refuse)
	case o.Watch && o.SendInitialEvents != nil && s.noStream:
		s.fail(w, apierrors.NewInvalid(schema.GroupKind{Kind: "ListOptions"}, "", nil))
	case o.Watch:
		s.watch(w, r, c, o, gv)
	default:
		list, err := c.List(o)
		if err != nil {
			s.fail(w, err)
			return
		}
		s.write(w, http.StatusOK, list, gv)
	}
}

func (s *apiServer) fail(w http.ResponseWriter, err error) {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		status = apierrors.NewInternalError(err)
	}
	st := status.Status()
	s.write(w, int(st.Code), &st, metav1.Unversioned)
}

func (s *apiServer) write(w http.ResponseWriter, code int, o runtime.Object, gv schema.GroupVersion) {
	info, ok := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), s.mediaType)
	if !ok {
		s.t.Errorf("no serializer for %s", s.mediaType)
		return
	}
	w.Header().Set("Content-Type", s.mediaType)
	w.WriteHeader(code)
	if err := scheme.Codecs.EncoderForVersion(info.Serializer, gv).Encode(o, w); err != nil {
		s.t.Logf("answer: %v", err)
	}
}

func (s *apiServer) watch(w http.ResponseWriter, r *http.Request, c *collection, o metav1.ListOptions, gv schema.GroupVersion) {
	events, err := c.Watch(o)
	if err != nil {
		s.fail(w, err)
		return
	}
	defer events.Stop()
	info, _ := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), s.mediaType)
	frames := info.StreamSerializer.NewFrameWriter(w)
	enc := restwatch.NewEncoder(
		streaming.NewEncoder(frames, scheme.Codecs.EncoderForVersion(info.StreamSerializer.Serializer, gv)),
		scheme.Codecs.EncoderForVersion(info.Serializer, gv))
	w.Header().Set("Content-Type", s.mediaType+";stream=watch")
	w.WriteHeader(http.StatusOK)
	flush := w.(http.Flusher).Flush
	flush()
	for {
		select {
		case <-r.Context().Done():
			return
		case e, ok := <-events.ResultChan():
			if !ok {
				return
			}
			if err := enc.Encode(&watch.Event{Type: e.Type, Object: e.Object}); err != nil {
				return
			}
			flush()
		}
	}
}
