// An agent on opamp-go, the reference client: it applies every config that it is offered and says what happens, a JSON
// line an event. It ends, saying goodbye, when standard input does.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"strings"
	"sync"

	"github.com/google/uuid"
	"github.com/open-telemetry/opamp-go/client"
	"github.com/open-telemetry/opamp-go/client/types"
	"github.com/open-telemetry/opamp-go/protobufs"
)

var output sync.Mutex

func say(event string, fields map[string]string) {
	line := map[string]string{"event": event}
	for key, value := range fields {
		line[key] = value
	}
	text, _ := json.Marshal(line)
	output.Lock()
	fmt.Println(string(text))
	output.Unlock()
}

type quiet struct{}

func (quiet) Debugf(context.Context, string, ...any) {}
func (quiet) Errorf(_ context.Context, format string, v ...any) {
	say("error", map[string]string{"error": fmt.Sprintf(format, v...)})
}

func attribute(key, value string) *protobufs.KeyValue {
	return &protobufs.KeyValue{Key: key, Value: &protobufs.AnyValue{Value: &protobufs.AnyValue_StringValue{StringValue: value}}}
}

func main() {
	endpoint := flag.String("endpoint", "ws://127.0.0.1:4320/v1/opamp", "ws:// or http:// URL")
	name := flag.String("name", "go-agent", "service.instance.id")
	folder := flag.String("packages", "", "folder to install packages into; none: accept none")
	flag.Parse()

	var agent client.OpAMPClient = client.NewWebSocket(quiet{})
	if strings.HasPrefix(*endpoint, "http") {
		agent = client.NewHTTP(quiet{})
	}
	var mutex sync.Mutex
	var body []byte
	uid, err := uuid.NewV7()
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	status := func(hash []byte, code protobufs.RemoteConfigStatuses, reason string) {
		_ = agent.SetRemoteConfigStatus(&protobufs.RemoteConfigStatus{
			LastRemoteConfigHash: hash, Status: code, ErrorMessage: reason,
		})
	}
	capabilities := protobufs.AgentCapabilities_AgentCapabilities_ReportsStatus |
		protobufs.AgentCapabilities_AgentCapabilities_AcceptsRemoteConfig |
		protobufs.AgentCapabilities_AgentCapabilities_ReportsRemoteConfig |
		protobufs.AgentCapabilities_AgentCapabilities_ReportsEffectiveConfig |
		protobufs.AgentCapabilities_AgentCapabilities_ReportsHealth
	settings := types.StartSettings{}
	if *folder != "" {
		capabilities |= protobufs.AgentCapabilities_AgentCapabilities_AcceptsPackages |
			protobufs.AgentCapabilities_AgentCapabilities_ReportsPackageStatuses
		settings.PackagesStateProvider = newStore(*folder)
		// SetCapabilities refuses these two before Start, which alone sets the provider that they need.
		settings.Capabilities = capabilities
	}
	_ = agent.SetAgentDescription(&protobufs.AgentDescription{
		IdentifyingAttributes:    []*protobufs.KeyValue{attribute("service.name", "go"), attribute("service.instance.id", *name)},
		NonIdentifyingAttributes: []*protobufs.KeyValue{attribute("tier", "production")},
	})
	_ = agent.SetHealth(&protobufs.ComponentHealth{Healthy: true})
	_ = agent.SetCapabilities(&capabilities)
	settings.OpAMPServerURL = *endpoint
	settings.InstanceUid = types.InstanceUid(uid)
	settings.Callbacks = types.Callbacks{
		OnConnect:       func(context.Context) { say("connected", nil) },
		OnConnectFailed: func(context.Context, error) { say("connect_failed", nil) },
		OnError: func(_ context.Context, e *protobufs.ServerErrorResponse) {
			say("server_error", map[string]string{"error": e.ErrorMessage})
		},
		OnMessage: func(ctx context.Context, message *types.MessageData) {
			if message.PackageSyncer != nil {
				say("packages", map[string]string{"hash": fmt.Sprintf("%x", message.PackagesAvailable.AllPackagesHash)})
				if err := message.PackageSyncer.Sync(ctx); err != nil {
					say("error", map[string]string{"error": err.Error()})
				}
			}
			if message.RemoteConfig == nil {
				return
			}
			hash := message.RemoteConfig.ConfigHash
			say("config", map[string]string{"hash": fmt.Sprintf("%x", hash)})
			status(hash, protobufs.RemoteConfigStatuses_RemoteConfigStatuses_APPLYING, "")
			mutex.Lock()
			body = message.RemoteConfig.Config.ConfigMap[""].Body
			mutex.Unlock()
			if strings.Contains(string(body), "rate: 13") {
				status(hash, protobufs.RemoteConfigStatuses_RemoteConfigStatuses_FAILED, "thirteen is not a rate")
				return
			}
			status(hash, protobufs.RemoteConfigStatuses_RemoteConfigStatuses_APPLIED, "")
			_ = agent.UpdateEffectiveConfig(ctx)
		},
		GetEffectiveConfig: func(context.Context) (*protobufs.EffectiveConfig, error) {
			mutex.Lock()
			defer mutex.Unlock()
			return &protobufs.EffectiveConfig{ConfigMap: &protobufs.AgentConfigMap{
				ConfigMap: map[string]*protobufs.AgentConfigFile{"": {Body: body}},
			}}, nil
		},
		SaveRemoteConfigStatus: func(context.Context, *protobufs.RemoteConfigStatus) {},
	}
	err = agent.Start(ctx, settings)
	if err != nil {
		log.Fatal(err)
	}
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
	}
	_ = agent.Stop(ctx)
}
