package com.example;

import com.example.pixyproxy.Refusal;
import com.example.pixyproxy.Watch;
import com.pixyproxy.v1.CancelGenerationRequest;
import com.pixyproxy.v1.CreateGenerationRequest;
import com.pixyproxy.v1.CreateImageRequest;
import com.pixyproxy.v1.Generation;
import com.pixyproxy.v1.GenerationOptions;
import com.pixyproxy.v1.GenerationServiceGrpc;
import com.pixyproxy.v1.GenerationServiceGrpc.GenerationServiceBlockingStub;
import io.grpc.Channel;
import io.grpc.Deadline;
import io.grpc.StatusRuntimeException;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.TimeUnit;

/** Starts, watches and cancels generations. */
final class Generations {
  private static final Deadline DEADLINE = Deadline.after(1, TimeUnit.MINUTES);

  private Generations() {}

  /** Starts a generation at one server, and watches it at another one. */
  static Map<String, ?> watches(Channel here, Channel there) throws InterruptedException {
    var guid = start(stub(here)).getGuid();
    var states = new ArrayList<String>();
    var partials = new ArrayList<String>();
    var ended =
        Watch.watch(
            stub(there),
            guid,
            DEADLINE,
            generation -> states.add(generation.getState().name()),
            (image, data) -> partials.add(image.getContentType() + " " + sha256(data.toByteArray())));
    return Map.of("guid", guid, "states", states, "partials", partials, "image", ended.getImage().getGuid());
  }

  /** Starts a generation, cancels it twice, and tries to cancel one that has ended. */
  static Map<String, ?> cancels(Channel channel, String another) throws InterruptedException {
    var generations = stub(channel);
    var started = start(generations);
    var states =
        List.of(
            started.getState().name(),
            cancel(generations, started.getGuid()).getState().name(),
            cancel(generations, started.getGuid()).getState().name());
    var refused = "";
    try {
      cancel(generations, another);
    } catch (StatusRuntimeException error) {
      refused = Refusal.of(error).reason();
    }
    return Map.of("guid", started.getGuid(), "states", states, "refused", refused);
  }

  private static GenerationServiceBlockingStub stub(Channel channel) {
    return GenerationServiceGrpc.newBlockingStub(channel).withDeadline(DEADLINE);
  }

  private static Generation start(GenerationServiceBlockingStub generations) throws InterruptedException {
    var image =
        CreateImageRequest.newBuilder()
            .setPrompt("A lighthouse")
            .setRequestId(UUID.randomUUID().toString())
            .setOptions(GenerationOptions.newBuilder().setSize("64x64").setPartialImages(2));
    var request = CreateGenerationRequest.newBuilder().setRequest(image).build();
    return Refusal.repeat(DEADLINE, () -> generations.createGeneration(request)).getGeneration();
  }

  private static Generation cancel(GenerationServiceBlockingStub generations, String guid) {
    return generations.cancelGeneration(CancelGenerationRequest.newBuilder().setGuid(guid).build()).getGeneration();
  }

  private static String sha256(byte[] data) {
    try {
      return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(data));
    } catch (NoSuchAlgorithmException error) {
      throw new IllegalStateException(error);
    }
  }
}
