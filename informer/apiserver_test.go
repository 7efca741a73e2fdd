package informer

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/runtime/serializer/streaming"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	restwatch "k8s.io/client-go/rest/watch"

	"github.com/selvage-net/selvage/informer/api/calico"
	"github.com/selvage-net/selvage/informer/api/v1alpha1"
)

// apiServer speaks enough of the Kubernetes API over HTTP to be listed and
// watched, in protobuf or JSON. It has all kinds, until told otherwise.
type apiServer struct {
	t           *testing.T
	collections [len(Kinds)]*collection
	definitions *definitions
	codecs      serializer.CodecFactory
	// mediaType is what it answers in, whatever else is accepted; but CRs are JSON.
	mediaType string
	// noStream makes it one that does not know sendInitialEvents.
	noStream bool
	addr     string

	mu      sync.Mutex
	server  *httptest.Server
	refuse  *apierrors.StatusError
	refused map[Kind]*apierrors.StatusError
	// lost are the kinds that it does not serve.
	lost map[Kind]bool
	// unwatched are those that may not be watched.
	unwatched map[Kind]bool
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
	s := &apiServer{
		t: t, mediaType: mediaType, addr: "127.0.0.1:0", definitions: newDefinitions(),
		lost: map[Kind]bool{}, unwatched: map[Kind]bool{}, refused: map[Kind]*apierrors.StatusError{},
	}
	all := runtime.NewScheme()
	for _, err := range []error{scheme.AddToScheme(all), v1alpha1.SchemeBuilder.AddToScheme(all), calico.SchemeBuilder.AddToScheme(all), metav1.AddMetaToScheme(all)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s.codecs = serializer.NewCodecFactory(all)
	for _, kind := range Kinds {
		s.collections[kind] = newCollection(kind)
		if name := kindInfo[kind].definition; name != "" {
			s.definitions.set(name, true)
		}
	}
	s.start()
	t.Cleanup(func() {
		s.stop()
		for _, c := range s.collections {
			c.shutdown()
		}
		s.definitions.events.Shutdown()
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

// refuseKind makes requests for a kind fail with err, or be answered, whatever is with
// the others.
func (s *apiServer) refuseKind(kind Kind, err *apierrors.StatusError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused[kind] = err
}

// refuseWatch makes watches of a kind be forbidden, or not.
func (s *apiServer) refuseWatch(kind Kind, refused bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unwatched[kind] = refused
}

// serve makes it have a kind, or not.
func (s *apiServer) serve(kind Kind, served bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost[kind] = !served
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
	for _, kind := range Kinds {
		if reflect.TypeOf(o) == reflect.TypeOf(kindInfo[kind].object()) {
			return identity{kind, o.GetNamespace(), o.GetName()}
		}
	}
	return identity{}
}

// pathOf returns where an API server has all objects of a kind.
func pathOf(kind Kind) string {
	info := kindInfo[kind]
	if groupOf(info.apiVersions[0]) == "" {
		return "/api/v1/" + info.resource
	}
	return "/apis/" + info.apiVersions[0] + "/" + info.resource
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
	if r.URL.Path == definitionsPath {
		s.serveDefinitions(w, r)
		return
	}
	i := slices.IndexFunc(Kinds[:], func(k Kind) bool { return pathOf(k) == r.URL.Path })
	if i < 0 {
		http.NotFound(w, r)
		return
	}
	kind, c := Kinds[i], s.collections[i]
	s.mu.Lock()
	lost, garbled := s.lost[kind], s.garbled[kind]
	if s.refused[kind] != nil {
		refuse = s.refused[kind]
	} else if s.unwatched[kind] && r.URL.Query().Has("watch") {
		refuse = refusal()
	}
	s.mu.Unlock()
	gv, err := schema.ParseGroupVersion(kindInfo[kind].apiVersions[0])
	if err != nil {
		s.t.Error(err)
	}
	switch {
	case refuse == nil && lost:
		// That is all that a server says of what it does not know at all.
		http.NotFound(w, r)
		return
	case garbled:
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintln(w, `{"kind": ["nonsense"]}`)
		return
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
	info := s.serializer(gv)
	w.Header().Set("Content-Type", info.MediaType)
	w.WriteHeader(code)
	if err := s.codecs.EncoderForVersion(info.Serializer, gv).Encode(o, w); err != nil {
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
	s.stream(w, r, events, gv)
}

// serializer returns what objects of a group are written by.
func (s *apiServer) serializer(gv schema.GroupVersion) runtime.SerializerInfo {
	mediaType := s.mediaType
	if gv == v1alpha1.GroupVersion || gv == calico.GroupVersion || gv.Group == metav1.GroupName {
		mediaType = asJSON
	}
	info, ok := runtime.SerializerInfoForMediaType(s.codecs.SupportedMediaTypes(), mediaType)
	if !ok {
		s.t.Errorf("no serializer for %s", mediaType)
	}
	return info
}

// stream writes the events of a watch until it ends.
func (s *apiServer) stream(w http.ResponseWriter, r *http.Request, events watch.Interface, gv schema.GroupVersion) {
	info := s.serializer(gv)
	frames := info.StreamSerializer.NewFrameWriter(w)
	enc := restwatch.NewEncoder(
		streaming.NewEncoder(frames, s.codecs.EncoderForVersion(info.StreamSerializer.Serializer, metav1.Unversioned)),
		s.codecs.EncoderForVersion(info.Serializer, gv))
	w.Header().Set("Content-Type", info.MediaType+";stream=watch")
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
				if runtime.IsNotRegisteredError(err) {
					s.t.Errorf("event: %v", err)
				}
				return
			}
			flush()
		}
	}
}

const definitionsPath = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

// definitions are the CustomResourceDefinitions of an apiServer, as far as they are
// looked at.
type definitions struct {
	events *watch.Broadcaster

	mu      sync.Mutex
	version int
	there   map[string]*metav1.PartialObjectMetadata
	refuse  *apierrors.StatusError
}

func newDefinitions() *definitions {
	return &definitions{events: watch.NewBroadcaster(watchQueue, watch.WaitIfChannelFull), there: map[string]*metav1.PartialObjectMetadata{}}
}

// set makes a definition be there, or not.
func (d *definitions) set(name string, there bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.version++
	o := &metav1.PartialObjectMetadata{}
	o.Name, o.ResourceVersion = name, strconv.Itoa(d.version)
	event := watch.Added
	if there {
		d.there[name] = o
	} else {
		event = watch.Deleted
		delete(d.there, name)
	}
	_ = d.events.Action(event, o) // it fails at the end only
}

// answer makes all requests for definitions fail with err, or be answered.
func (d *definitions) answer(err *apierrors.StatusError) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refuse = err
}

// serveDefinitions answers with metadata of one definition, or none.
func (s *apiServer) serveDefinitions(w http.ResponseWriter, r *http.Request) {
	d, q := s.definitions, r.URL.Query()
	name, ok := strings.CutPrefix(q.Get("fieldSelector"), "metadata.name=")
	watching := q.Get("watch") != ""
	if as := r.Header.Get("Accept"); !ok || !strings.HasPrefix(as, "application/json;as=PartialObjectMetadata") || strings.Contains(as, "List") == watching {
		s.t.Errorf("asked for definitions by %q, as %q", r.URL, as)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refuse != nil {
		s.fail(w, d.refuse)
		return
	}
	if !watching {
		list := &metav1.PartialObjectMetadataList{}
		list.ResourceVersion = strconv.Itoa(d.version)
		if o := d.there[name]; o != nil {
			list.Items = append(list.Items, *o)
		}
		s.write(w, http.StatusOK, list, metav1.SchemeGroupVersion)
		return
	}
	var missed []watch.Event
	if o := d.there[name]; o != nil && q.Get("resourceVersion") != strconv.Itoa(d.version) {
		missed = append(missed, watch.Event{Type: watch.Added, Object: o})
	}
	events, err := d.events.WatchWithPrefix(missed)
	if err != nil {
		s.fail(w, err)
		return
	}
	d.mu.Unlock()
	defer d.mu.Lock()
	defer events.Stop()
	s.stream(w, r, watch.Filter(events, func(e watch.Event) (watch.Event, bool) {
		return e, e.Object.(*metav1.PartialObjectMetadata).Name == name
	}), metav1.SchemeGroupVersion)
}
