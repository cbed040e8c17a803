# A wall clock that the test steps while its servers run:
#
#   use RegPilot::Clock;          # before the server is started
#   step_clock(-3600);            # from here on an hour back
#
# The clock is for servers; what else is started does not care.

package RegPilot::Clock;

use strict;
use warnings;
use Cwd qw(abs_path);
use Exporter qw(import);
use PostgreSQL::Test::Utils ();

our @EXPORT = qw(step_clock);

my $clock = PostgreSQL::Test::Utils::tempdir_short() . '/clock';
PostgreSQL::Test::Utils::append_to_file($clock, pack 'q', 0);
$ENV{STEPPED_CLOCK} = $clock;
$ENV{LD_PRELOAD} = abs_path('t/build/steppedclock.so');

# Sets the clock that many seconds off, of all servers at once.
sub step_clock
{
	my ($seconds) = @_;
	open my $file, '+<', $clock or die "$clock: $!";
	syswrite $file, pack 'q', 1e6 * $seconds;
	return;
}

1;
