#pragma once

/// The distance of a point from the origin (hypot(3)); see stand_ins.c.
float hypotf(float x, float y);
