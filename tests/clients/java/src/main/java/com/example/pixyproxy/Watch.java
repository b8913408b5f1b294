package com.example.pixyproxy;

import com.google.protobuf.ByteString;
import com.pixyproxy.v1.Generation;
import com.pixyproxy.v1.GenerationServiceGrpc.GenerationServiceBlockingStub;
import com.pixyproxy.v1.PartialImage;
import com.pixyproxy.v1.WatchGenerationRequest;
import io.grpc.Deadline;
import java.util.function.BiConsumer;
import java.util.function.Consumer;

/** Watches a generation. */
public final class Watch {
  private final Consumer<Generation> onState;
  private final BiConsumer<PartialImage, ByteString> onPartial;
  private Generation shown = Generation.getDefaultInstance();
  private int nextIndex = 0;

  private Watch(Consumer<Generation> onState, BiConsumer<PartialImage, ByteString> onPartial) {
    this.onState = onState;
    this.onPartial = onPartial;
  }

  /**
   * Follows a generation until it has ended, and returns it.
   *
   * <p>A stream that breaks is asked for again, of any server; onState and onPartial are called once for each state and
   * each partial image.
   */
  public static Generation watch(
      GenerationServiceBlockingStub generations,
      String guid,
      Deadline deadline,
      Consumer<Generation> onState,
      BiConsumer<PartialImage, ByteString> onPartial)
      throws InterruptedException {
    var watch = new Watch(onState, onPartial);
    while (!watch.isOver()) {
      Refusal.repeat(deadline, () -> watch.read(generations.withDeadline(deadline), guid));
    }
    return watch.shown;
  }

  private Generation read(GenerationServiceBlockingStub generations, String guid) {
    var image = PartialImage.getDefaultInstance();
    var data = ByteString.EMPTY;
    var messages = generations.watchGeneration(WatchGenerationRequest.newBuilder().setGuid(guid).build());
    while (messages.hasNext()) {
      var message = messages.next();
      switch (message.getEventCase()) {
        case GENERATION -> show(message.getGeneration());
        case PARTIAL_IMAGE -> {
          image = message.getPartialImage();
          data = ByteString.EMPTY;
        }
        case DATA -> {
          data = data.concat(message.getData());
          if (data.size() == image.getSizeBytes() && image.getIndex() >= nextIndex) {
            nextIndex = image.getIndex() + 1;
            onPartial.accept(image, data);
          }
        }
        default -> {}
      }
    }
    return shown;
  }

  private void show(Generation generation) {
    if (generation.getState() != shown.getState() || generation.getAttempts() != shown.getAttempts()) {
      shown = generation;
      onState.accept(generation);
    }
  }

  private boolean isOver() {
    return switch (shown.getState()) {
      case GENERATION_STATE_UNSPECIFIED, GENERATION_STATE_QUEUED, GENERATION_STATE_SUBMITTED -> false;
      default -> true;
    };
  }
}
