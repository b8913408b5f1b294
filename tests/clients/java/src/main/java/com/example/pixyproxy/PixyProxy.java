package com.example.pixyproxy;

import static java.nio.charset.StandardCharsets.UTF_8;

import com.google.gson.Gson;
import com.google.gson.reflect.TypeToken;
import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.stub.MetadataUtils;
import java.io.InputStreamReader;
import java.util.Base64;
import java.util.Map;
import java.util.Objects;

/** Connects to a PixyProxy server. */
public final class PixyProxy {
  private static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

  private PixyProxy() {}

  /** Makes a channel that retries by the service config. With an empty username nobody signs in. */
  public static ManagedChannel connect(
      String address, ChannelCredentials transport, String username, String password) {
    return Grpc.newChannelBuilder(address, transport)
        .defaultServiceConfig(serviceConfig())
        .intercept(MetadataUtils.newAttachHeadersInterceptor(signIn(username, password)))
        .build();
  }

  private static Metadata signIn(String username, String password) {
    var metadata = new Metadata();
    if (!username.isEmpty()) {
      var token = Base64.getEncoder().encodeToString((username + ":" + password).getBytes(UTF_8));
      metadata.put(AUTHORIZATION, "Basic " + token);
    }
    return metadata;
  }

  private static Map<String, ?> serviceConfig() {
    var resource = PixyProxy.class.getResourceAsStream("/service_config.json");
    var reader = new InputStreamReader(Objects.requireNonNull(resource), UTF_8);
    return new Gson().fromJson(reader, new TypeToken<Map<String, Object>>() {});
  }
}
