// The load client: many OpAMP agents over WebSocket from one process, with its own framing so that it outruns the server.
//
//	load -mode heartbeat   each connection sends its next heartbeat when the last is answered: the server's maximum
//	load -mode fleet       all agents connect with full state, then send heartbeats at fixed times; latency counts from
//	                       the time a heartbeat was due. Agents answer a new config as real ones do: APPLYING, then
//	                       APPLIED with the effective config. A line is printed once all agents have had their answers
//	                       acknowledged. Ends when standard input does.
//
//	load -mode polls       like heartbeat, over plain HTTP
//
//	load -mode download    one download of -url per agent, all at once, each over its own connection; the bytes are
//	                       counted and discarded
//
// Every line it prints is JSON.
package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/open-telemetry/opamp-go/protobufs"
	"google.golang.org/protobuf/proto"
)

const capabilities = 0x3807

var (
	mode      = flag.String("mode", "heartbeat", "heartbeat, fleet or download")
	url       = flag.String("url", "", "URL to download")
	target    = flag.String("target", "127.0.0.1:4320", "host:port")
	secure    = flag.Bool("tls", false, "use TLS without verification")
	count     = flag.Int("agents", 100, "number of agents")
	seconds   = flag.Float64("seconds", 5, "duration in seconds (heartbeat)")
	interval  = flag.Duration("interval", 30*time.Second, "interval between an agent's heartbeats (fleet)")
	together  = flag.Int("together", 10000, "the most connections opened at once")
	prefix    = flag.String("prefix", "load", "prefix of the agents' names")
	bearers   = flag.String("bearers", "", "file with a token a line; the first agent sends the first one, and so on")
	certFile  = flag.String("cert", "", "certificate of all agents, with its key (PEM)")
	output    sync.Mutex
	latencies samples
)

type samples struct {
	sync.Mutex
	values []float64
}

func (s *samples) add(d time.Duration) {
	s.Lock()
	s.values = append(s.values, float64(d.Microseconds())/1000)
	s.Unlock()
}

func (s *samples) take() map[string]float64 {
	s.Lock()
	values := s.values
	s.values = nil
	s.Unlock()
	sort.Float64s(values)
	at := func(q float64) float64 {
		if len(values) == 0 {
			return 0
		}
		return values[min(len(values)-1, int(q*float64(len(values))))]
	}
	return map[string]float64{"n": float64(len(values)), "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1)}
}

func emit(line map[string]any) {
	line["at"] = float64(time.Now().UnixMicro()) / 1e6
	text, _ := json.Marshal(line)
	output.Lock()
	fmt.Println(string(text))
	output.Unlock()
}

type agent struct {
	name    string
	bearer  string
	uid     []byte
	conn    net.Conn
	reader  *bufio.Reader
	mutex   sync.Mutex
	seq     uint64
	frame   []byte
	due     atomic.Int64 // when the unanswered heartbeat was due, in ns; 0: none
	hash    []byte
	running []byte // the effective config, encoded
	answers int    // still expected to its reports about the last config
	replied atomic.Bool
}

func (a *agent) connect() error {
	dialer := net.Dialer{Timeout: 60 * time.Second}
	conn, err := dialer.Dial("tcp", *target)
	if err != nil {
		return err
	}
	if *secure {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, Certificates: certificates})
	}
	a.conn = conn
	a.reader = bufio.NewReaderSize(conn, 2048)
	_, err = fmt.Fprintf(conn, "GET /v1/opamp HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"%sSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", *target, a.authorization())
	if err != nil {
		return err
	}
	status, err := a.reader.ReadString('\n')
	if err != nil {
		return err
	}
	if !bytes.Contains([]byte(status), []byte(" 101 ")) {
		return fmt.Errorf("refused: %s", status)
	}
	for {
		line, err := a.reader.ReadString('\n')
		if err != nil {
			return err
		}
		if line == "\r\n" {
			return nil
		}
	}
}

// authorization returns the header line with the agent's token.
func (a *agent) authorization() string {
	if a.bearer == "" {
		return ""
	}
	return "Authorization: Bearer " + a.bearer + "\r\n"
}

// send writes one binary message, header byte 0 and the body, with a zero mask.
func (a *agent) send(body []byte) error {
	frame := append(a.frame[:0], 0x82)
	size := len(body) + 1
	switch {
	case size < 126:
		frame = append(frame, 0x80|byte(size))
	case size < 65536:
		frame = binary.BigEndian.AppendUint16(append(frame, 0x80|126), uint16(size))
	default:
		frame = binary.BigEndian.AppendUint64(append(frame, 0x80|127), uint64(size))
	}
	frame = append(frame, 0, 0, 0, 0, 0)
	frame = append(frame, body...)
	a.frame = frame
	_, err := a.conn.Write(frame)
	return err
}

func (a *agent) heartbeat() error {
	body := make([]byte, 0, 48)
	body = append(append(body, 0x0a, 16), a.uid...)
	a.mutex.Lock()
	defer a.mutex.Unlock()
	body = binary.AppendUvarint(append(body, 0x10), a.seq)
	body = binary.AppendUvarint(append(body, 0x20), capabilities)
	a.seq++
	return a.send(body)
}

func (a *agent) report(message *protobufs.AgentToServer) error {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	message.InstanceUid, message.SequenceNum, message.Capabilities = a.uid, a.seq, capabilities
	a.seq++
	body, err := proto.Marshal(message)
	if err != nil {
		return err
	}
	return a.send(body)
}

func text(key, value string) *protobufs.KeyValue {
	return &protobufs.KeyValue{Key: key, Value: &protobufs.AnyValue{Value: &protobufs.AnyValue_StringValue{StringValue: value}}}
}

// zoneOf spreads agents over fifty zones.
func zoneOf(name string) string {
	number, _ := strconv.Atoi(name[len(name)-2:])
	return fmt.Sprintf("zone-%d", number%50)
}

func (a *agent) full() error {
	status := &protobufs.RemoteConfigStatus{}
	if a.hash != nil {
		status.LastRemoteConfigHash, status.Status = a.hash, protobufs.RemoteConfigStatuses_RemoteConfigStatuses_APPLIED
	}
	return a.report(&protobufs.AgentToServer{
		EffectiveConfig: a.effective(),
		AgentDescription: &protobufs.AgentDescription{
			IdentifyingAttributes: []*protobufs.KeyValue{
				text("service.name", "otelcol"), text("service.instance.id", a.name), text("service.version", "0.149.0"),
			},
			NonIdentifyingAttributes: []*protobufs.KeyValue{
				text("os.type", "linux"), text("host.name", a.name+".example.internal"), text("host.arch", "amd64"),
				text("tier", "production"), text("cloud.region", "eu-west-1"), text("cloud.zone", zoneOf(a.name)),
				text("deployment.environment", "production"),
			},
		},
		Health:             &protobufs.ComponentHealth{Healthy: true, Status: "running"},
		RemoteConfigStatus: status,
	})
}

// effective returns the config that the agent runs; nil before its first.
func (a *agent) effective() *protobufs.EffectiveConfig {
	if a.running == nil {
		return nil
	}
	files := map[string]*protobufs.AgentConfigFile{"": {Body: a.running, ContentType: "text/yaml"}}
	return &protobufs.EffectiveConfig{ConfigMap: &protobufs.AgentConfigMap{ConfigMap: files}}
}

// read returns the body of the next message.
func (a *agent) read() ([]byte, error) {
	for {
		var head [2]byte
		if _, err := io.ReadFull(a.reader, head[:]); err != nil {
			return nil, err
		}
		size := uint64(head[1] & 0x7f)
		var more [8]byte
		switch size {
		case 126:
			if _, err := io.ReadFull(a.reader, more[:2]); err != nil {
				return nil, err
			}
			size = uint64(binary.BigEndian.Uint16(more[:2]))
		case 127:
			if _, err := io.ReadFull(a.reader, more[:]); err != nil {
				return nil, err
			}
			size = binary.BigEndian.Uint64(more[:])
		}
		payload := make([]byte, size)
		if _, err := io.ReadFull(a.reader, payload); err != nil {
			return nil, err
		}
		switch head[0] & 0x0f {
		case 0x8:
			return nil, io.EOF
		case 0x2:
			return payload[1:], nil
		}
	}
}

func makeAgents() []*agent {
	agents := make([]*agent, *count)
	for i := range agents {
		name := fmt.Sprintf("%s-%05d", *prefix, i)
		uid := sha256.Sum256([]byte(name)) // the same agent in each run
		agents[i] = &agent{name: name, uid: uid[:16]}
		if len(tokens) > 0 {
			agents[i].bearer = tokens[i%len(tokens)]
		}
	}
	return agents
}

func connectAll(agents []*agent, after func(*agent)) {
	began := time.Now()
	gate := make(chan struct{}, *together)
	var group sync.WaitGroup
	var failed atomic.Int64
	for _, a := range agents {
		group.Add(1)
		gate <- struct{}{}
		go func() {
			defer group.Done()
			defer func() { <-gate }()
			err := a.connect()
			if err == nil {
				err = a.full()
			}
			if err == nil {
				var body []byte
				body, err = a.read()
				if err == nil {
					a.replied.Store(true)
					handle(a, body)
				}
			}
			if err != nil {
				if failed.Add(1) == 1 {
					emit(map[string]any{"event": "error", "error": err.Error()})
				}
				return
			}
			if after != nil {
				go after(a)
			}
		}()
	}
	group.Wait()
	took := time.Since(began).Seconds()
	emit(map[string]any{
		"event": "connected", "agents": len(agents) - int(failed.Load()), "failed": failed.Load(),
		"seconds": took, "per_second": float64(len(agents)-int(failed.Load())) / took,
	})
}

var tally struct {
	sync.Mutex
	hash  []byte
	count int
	first time.Time
}

// handle processes a message; a plain acknowledgement answers the pending heartbeat.
func handle(a *agent, body []byte) {
	now := time.Now()
	if len(body) == 18 {
		if a.answers > 0 {
			if a.answers--; a.answers == 0 {
				countApplied(a, now)
			}
			return
		}
		if due := a.due.Swap(0); due != 0 {
			latencies.add(now.Sub(time.Unix(0, due)))
		}
		return
	}
	var message protobufs.ServerToAgent
	if proto.Unmarshal(body, &message) != nil {
		return
	}
	if message.Flags&1 != 0 {
		_ = a.full()
	}
	if message.RemoteConfig == nil {
		return
	}
	hash := message.RemoteConfig.ConfigHash
	a.hash, a.answers = hash, 2
	for _, file := range message.RemoteConfig.Config.ConfigMap {
		a.running = file.Body
	}
	_ = a.report(&protobufs.AgentToServer{RemoteConfigStatus: &protobufs.RemoteConfigStatus{
		LastRemoteConfigHash: hash, Status: protobufs.RemoteConfigStatuses_RemoteConfigStatuses_APPLYING,
	}})
	_ = a.report(&protobufs.AgentToServer{
		EffectiveConfig: a.effective(),
		RemoteConfigStatus: &protobufs.RemoteConfigStatus{
			LastRemoteConfigHash: hash, Status: protobufs.RemoteConfigStatuses_RemoteConfigStatuses_APPLIED,
		},
	})
}

// countApplied counts an agent whose reports about its config are acknowledged.
func countApplied(a *agent, now time.Time) {
	tally.Lock()
	defer tally.Unlock()
	if !bytes.Equal(tally.hash, a.hash) {
		tally.hash, tally.count, tally.first = a.hash, 0, now
	}
	tally.count++
	if tally.count == *count {
		emit(map[string]any{
			"event": "config", "hash": fmt.Sprintf("%x", a.hash),
			"first": float64(tally.first.UnixMicro()) / 1e6, "last": float64(now.UnixMicro()) / 1e6,
			"heartbeats": latencies.take(),
		})
	}
}

// closed has the times at which sessions ended.
var closed struct {
	sync.Mutex
	times []float64
}

func countClosed() {
	closed.Lock()
	defer closed.Unlock()
	closed.times = append(closed.times, float64(time.Now().UnixMicro())/1e6)
	if len(closed.times) == *count {
		emit(map[string]any{"event": "closed", "p99": closed.times[*count*99/100], "last": closed.times[*count-1]})
	}
}

func runFleet() {
	agents := makeAgents()
	connectAll(agents, func(a *agent) {
		for {
			body, err := a.read()
			if err != nil {
				countClosed()
				return
			}
			handle(a, body)
		}
	})
	go func() {
		began := time.Now()
		step := *interval / time.Duration(len(agents))
		for i := 0; ; i++ {
			due := began.Add(time.Duration(i) * step)
			if wait := time.Until(due); wait > 0 {
				time.Sleep(wait)
			}
			a := agents[i%len(agents)]
			if a.replied.Load() {
				a.due.Store(due.UnixNano())
				_ = a.heartbeat()
			}
		}
	}()
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		var changing int
		if _, err := fmt.Sscanf(input.Text(), "change %d", &changing); err == nil {
			for _, a := range agents[:changing] {
				_ = a.report(&protobufs.AgentToServer{Health: &protobufs.ComponentHealth{Healthy: false, LastError: "told to"}})
			}
		}
		emit(map[string]any{"event": input.Text(), "heartbeats": latencies.take()})
	}
}

func runHeartbeat() {
	agents := makeAgents()
	var total atomic.Int64
	var stop atomic.Bool
	connectAll(agents, nil)
	var group sync.WaitGroup
	began := time.Now()
	for _, a := range agents {
		group.Add(1)
		go func() {
			defer group.Done()
			for !stop.Load() {
				sent := time.Now()
				if a.heartbeat() != nil {
					return
				}
				body, err := a.read()
				if err != nil {
					return
				}
				if len(body) == 18 {
					if total.Add(1)%16 == 0 {
						latencies.add(time.Since(sent))
					}
				} else {
					handle(a, body)
				}
			}
		}()
	}
	time.Sleep(time.Duration(*seconds * float64(time.Second)))
	stop.Store(true)
	took := time.Since(began).Seconds()
	exchanges := total.Load()
	emit(map[string]any{"event": "heartbeats", "exchanges": exchanges, "per_second": float64(exchanges) / took, "latency": latencies.take()})
}

// runPolls posts heartbeats over kept connections, the next one when the last is answered.
func runPolls() {
	transport := &http.Transport{MaxConnsPerHost: *count, MaxIdleConnsPerHost: *count}
	client := &http.Client{Transport: transport}
	var total, failed atomic.Int64
	var stop atomic.Bool
	post := func(a *agent, body []byte) bool {
		request, _ := http.NewRequest("POST", "http://"+*target+"/v1/opamp", bytes.NewReader(body))
		request.Header.Set("Content-Type", "application/x-protobuf")
		if a.bearer != "" {
			request.Header.Set("Authorization", "Bearer "+a.bearer)
		}
		response, err := client.Do(request)
		if err != nil {
			return false
		}
		defer response.Body.Close()
		_, _ = io.Copy(io.Discard, response.Body)
		return response.StatusCode == http.StatusOK
	}
	var group sync.WaitGroup
	began := time.Now()
	for _, a := range makeAgents() {
		group.Add(1)
		go func() {
			defer group.Done()
			for !stop.Load() {
				message := &protobufs.AgentToServer{InstanceUid: a.uid, SequenceNum: a.seq, Capabilities: capabilities}
				if a.seq == 0 {
					message.AgentDescription = &protobufs.AgentDescription{
						IdentifyingAttributes: []*protobufs.KeyValue{text("service.instance.id", a.name)},
					}
				}
				a.seq++
				body, _ := proto.Marshal(message)
				if post(a, body) {
					total.Add(1)
				} else {
					failed.Add(1)
				}
			}
		}()
	}
	time.Sleep(time.Duration(*seconds * float64(time.Second)))
	stop.Store(true)
	group.Wait()
	took := time.Since(began).Seconds()
	emit(map[string]any{"event": "polls", "failed": failed.Load(), "per_second": float64(total.Load()) / took})
}

var (
	tokens       []string
	certificates []tls.Certificate
)

func main() {
	flag.Parse()
	if *bearers != "" {
		content, err := os.ReadFile(*bearers)
		if err != nil {
			panic(err)
		}
		tokens = strings.Fields(string(content))
	}
	if *certFile != "" {
		pair, err := tls.LoadX509KeyPair(*certFile, *certFile)
		if err != nil {
			panic(err)
		}
		certificates = []tls.Certificate{pair}
	}
	switch *mode {
	case "polls":
		runPolls()
	case "fleet":
		runFleet()
	case "download":
		runDownload()
	default:
		runHeartbeat()
	}
}

// runDownload reads through a small buffer and keeps nothing, so that it measures the server.
func runDownload() {
	transport := &http.Transport{
		DisableKeepAlives: true, DisableCompression: true, ReadBufferSize: 256 << 10,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}
	client := &http.Client{Transport: transport}
	var bytes, failed atomic.Int64
	var done sync.WaitGroup
	began := time.Now()
	for range *count {
		done.Add(1)
		go func() {
			defer done.Done()
			response, err := client.Get(*url)
			if err != nil || response.StatusCode != http.StatusOK {
				failed.Add(1)
				return
			}
			defer response.Body.Close()
			buffer := make([]byte, 256<<10)
			for {
				n, err := response.Body.Read(buffer)
				bytes.Add(int64(n))
				if err == io.EOF {
					return
				}
				if err != nil {
					failed.Add(1)
					return
				}
			}
		}()
	}
	done.Wait()
	took := time.Since(began).Seconds()
	emit(map[string]any{"bytes": bytes.Load(), "failed": failed.Load(), "seconds": took})
}
